"""Says when a GRPO run learns nothing, and what to change, while it goes on.

Learning needs responses to one question that earn differently. Three things prevent it for many steps without an error:
nothing earns anything, all responses to every question earn the same, or most responses are cut off before they answer.
Each is told once, and again only after it has passed.
"""

from collections.abc import Mapping
from typing import Any

from longrl_trainer.config.stages import GrpoConfig
from longrl_trainer.runs.progress import ProgressDisplay, ProgressTask

PATIENCE_STEPS = 5
MOST_TRUNCATED = 0.5


class StallWatch:
    """Looks at one step after the other.

    Args:
        config: The recipe, whose settings are named.
        progress: Where lines are shown.
    """

    def __init__(self, config: GrpoConfig, progress: ProgressDisplay) -> None:
        self._config, self._progress = config, progress
        self._lasting = {"zero": 0, "alike": 0, "truncated": 0}

    def show(self, step: int, measured: Mapping[str, Any], bar: ProgressTask) -> None:
        """Advance the run's bar by a step, and say what has lasted."""
        bar.advance(note=describe_step(measured))
        for line in self.look(measured):
            self._progress.say(f"step {step}: {line}")

    def look(self, measured: Mapping[str, Any]) -> list[str]:
        """Count what a step had, and return a line for everything that has now lasted.

        Args:
            measured: The step's line in the journal.
        """
        reward, truncated = measured["reward"], measured["truncated_rate"] or 0.0
        is_zero = reward == 0
        found = {
            "zero": is_zero,
            "alike": not is_zero and 0 < measured["groups"] == measured["groups_without_spread"],
            "truncated": truncated > MOST_TRUNCATED,
        }
        self._lasting = {kind: self._lasting[kind] + 1 if is_there else 0 for kind, is_there in found.items()}
        lines = {
            "zero": (
                f"no response has earned anything for {PATIENCE_STEPS} steps, so nothing is learned: imitate first "
                "(`longrl sft`), or reward a right form too (`rewards.format`)"
            ),
            "alike": (
                f"all responses to every question have earned the same for {PATIENCE_STEPS} steps ({reward or 0:.2f} "
                "on average), so nothing is learned: raise `group_size` or `temperature`, or take other questions, "
                "since these are too easy or too hard"
            ),
            "truncated": (
                f"{truncated:.0%} of the responses were cut off, and more than half for {PATIENCE_STEPS} steps: raise "
                f"`max_response_tokens` (now {self._config.max_response_tokens})"
            ),
        }
        return [lines[kind] for kind, count in self._lasting.items() if count == PATIENCE_STEPS]


def describe_step(measured: Mapping[str, Any]) -> str:
    """A step in a few words, for a progress bar."""
    accuracy = "" if measured["accuracy"] is None else f"accuracy {measured['accuracy']:.0%}, "
    return f"{accuracy}reward {measured['reward'] or 0:.3f}, {measured['response_tokens'] or 0:.0f} tokens"
