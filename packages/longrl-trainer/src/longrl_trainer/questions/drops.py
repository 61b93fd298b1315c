"""The dropped questions of a run, and before which step each was found: `questions.json`.

The file grows as the run goes on and is complete before a step uses what is left. A run that goes on takes from it what
every finished step took (`longrl_trainer.questions.order`), so a question stays dropped for the rest of a run, even if
its file is restored.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from longrl_files.messages import visible
from longrl_trainer.errors import TrainerUsageError
from longrl_trainer.questions.candidates import Candidates
from longrl_trainer.questions.question import DroppedMedium, DroppedQuestion, DropReason
from longrl_trainer.runs.folder import QUESTIONS_NAME, Run

TEXT_REASONS = frozenset({DropReason.NO_REWARD, DropReason.CONTROL_TOKEN, DropReason.MALFORMED_RESPONSE})
"""What is found in the records alone."""


class RecordedDrops:
    """What a run that goes on has dropped, as `questions.json` says.

    Args:
        run: The run.

    Attributes:
        excluded: Questions left out from the beginning because of their media, by id: an older release opened all of
            them before the first step.
        found: Those found before a step that need not be repeated, by id.

    Raises:
        TrainerUsageError: The file was written by something else.
    """

    def __init__(self, run: Run) -> None:
        known = [_parsed(run, entry) for entry in run.read_dropped()]
        self._run = run
        self._by_texts = {item.question_id: item.detail for item in known if item.reason in TEXT_REASONS}
        self.excluded = {
            item.question_id: item
            for item in known
            if item.found_before_step is None and item.reason not in TEXT_REASONS
        }
        self.found = {
            item.question_id: item
            for item in known
            if item.found_before_step is not None and item.found_before_step <= run.step
        }

    def compare(self, candidates: Candidates) -> None:
        """Refuse to go on, or remark, if the texts of other questions are unusable now."""
        if self._run.step:
            dropped = {item.question_id: item.detail for item in candidates.dropped if item.reason in TEXT_REASONS}
            change = describe_other_questions(self._by_texts, dropped)
            if change is not None:
                self._run.accept_other_questions(change, after_step=self._run.step)


class DropLedger:
    """The dropped questions of a run.

    Args:
        candidates: The questions that the run can take.
        found: Those of them dropped so far, by id.
    """

    def __init__(self, candidates: Candidates, found: Mapping[str, DroppedQuestion]) -> None:
        self._candidates = candidates
        places = {name: place for place, name in enumerate(candidates.ids)} if found else {}
        self._found = {places[name]: item for name, item in found.items() if name in places}

    @property
    def is_everything(self) -> bool:
        """Whether no question is left."""
        return len(self._found) == len(self._candidates)

    def is_dropped(self, place: int, step: int | None = None) -> bool:
        """Whether a question is dropped, now or in a step (counted from 1)."""
        found = self._found.get(place)
        return found is not None and (step is None or (found.found_before_step or 0) <= step)

    def add(self, place: int, problem: DroppedMedium, step: int) -> None:
        """Drop a question before a step (counted from 1)."""
        self._found[place] = DroppedQuestion(
            question_id=self._candidates.ids[place],
            reason=problem.reason,
            detail=problem.detail,
            found_before_step=step,
        )

    def all_dropped(self) -> list[DroppedQuestion]:
        """Those left out from the beginning, and then the others as they were found."""
        return [*self._candidates.dropped, *self._found.values()]

    def counts(self) -> dict[str, Any]:
        """Number of questions: `input` = `kept` + the sum of `dropped`; what no step has needed yet counts as kept."""
        return count_questions(len(self._candidates) - len(self._found), self.all_dropped())

    def report(self) -> dict[str, Any]:
        """The counts, and every dropped question with its reason."""
        return {**self.counts(), "dropped_questions": [asdict(item) for item in self.all_dropped()]}


def count_questions(num_kept: int, dropped: Sequence[DroppedQuestion]) -> dict[str, Any]:
    """Number of questions by what became of them."""
    return {
        "input": num_kept + len(dropped),
        "kept": num_kept,
        "dropped": dict(sorted(Counter(str(item.reason) for item in dropped).items())),
    }


def describe_other_questions(dropped_before: Mapping[str, str], dropped_now: Mapping[str, str]) -> str | None:
    """The first question that was kept before and is dropped now, or the reverse, by id and reason; None if none is."""
    for question_id in sorted(dropped_before.keys() ^ dropped_now.keys()):
        if question_id in dropped_now:
            return f"{visible(question_id)} can't be used now ({visible(dropped_now[question_id])})"
        return f"{visible(question_id)} couldn't be used before ({visible(dropped_before[question_id])}) but can be now"
    return None


def _parsed(run: Run, entry: Any) -> DroppedQuestion:
    try:
        step = entry.get("found_before_step")
        if not isinstance(entry["question_id"], str) or not isinstance(entry["detail"], str):
            raise TypeError
        if step is not None and (type(step) is not int or step < 1):
            raise TypeError
        dropped = DroppedQuestion(
            question_id=entry["question_id"], reason=DropReason(entry["reason"]), detail=entry["detail"]
        )
        return replace(dropped, found_before_step=step)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise TrainerUsageError(
            f"{run.folder / QUESTIONS_NAME} was written by something else: no list of dropped questions; remove it"
        ) from error
