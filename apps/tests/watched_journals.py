"""Folders of runs as the trainer leaves them, of any length, without training."""

import json
from pathlib import Path
from typing import Any

from longrl_trainer.runs.journal import JsonLines


def write_run(
    folder: Path,
    *,
    num_steps: int,
    groups_per_step: int = 2,
    text: str = "It is A.",
    dataset: str = "",
    is_evaluated: bool = False,
) -> None:
    """Write a run of GRPO; one that is evaluated begins with the model before the first step."""
    folder.mkdir(parents=True)
    settings: dict[str, Any] = {"stage": "grpo", "settings": {"seed": 0, "data": {"num_frames": 8}}}
    (folder / "settings.json").write_text(json.dumps(settings | {"places": {"dataset": dataset}, "changes": []}))
    if is_evaluated:
        JsonLines(folder / "metrics.jsonl").append(0, {"evaluation": {"accuracy": 0.25}, "seconds": {"evaluate": 1.0}})
    add_steps(folder, range(1, num_steps + 1), groups_per_step, text)


def add_steps(folder: Path, steps: range, groups_per_step: int = 2, text: str = "It is A.") -> None:
    """Add steps to a run's journals."""
    metrics, rollouts = JsonLines(folder / "metrics.jsonl"), JsonLines(folder / "rollouts.jsonl")
    for step in steps:
        metrics.append(
            step,
            {
                "reward": step / 100,
                "rewards": {"answer": step / 100, "format": 1.0},
                "accuracy": 0.5,
                "kl": None,
                "prompts_refused": {},
                "seconds": {"rollouts": 2.0, "update": 3.0},
                "peak_bytes": 1000 + step,
            },
        )
        for place in range(groups_per_step):
            rollouts.append(step, make_group(step, place, text))


def make_group(step: int, place: int, text: str) -> dict[str, Any]:
    """Make a group of two responses, the second of which is cut off."""
    return {
        "question_id": f"q{place}",
        "media": ["videos/a.mp4"],
        "skill": "ordering" if place % 2 else "counting",
        "question": f"What is in step {step}, place {place}?",
        "options": ["red", "blue", "green", "white"],
        "answer": "A",
        "responses": [
            {
                "text": text,
                "finished": number == 0,
                "parsed": "A",
                "rewards": {"answer": float(number == 0), "format": 1.0},
                "reward": float(number == 0),
                "advantage": 1.0 - 2 * number,
                "tokens": [["It is", 0.0], [" A.", -0.75]] if number else None,
            }
            for number in range(2)
        ],
    }
