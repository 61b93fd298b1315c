"""The groups of a run in brief, to be listed and filtered; a group itself is read when it is looked at."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longrl.errors import AppUsageError
from longrl.watch.growing_journal import GrowingJournal, Place

JOURNAL_NAME = "rollouts.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedGroup:
    """One question of a step with its responses, in brief.

    Attributes:
        group_id: `STEP-PLACE`, the place counted from 1 among the groups of its step that are in the journal.
        step: The step, from 1.
        question_id: The question's id.
        skill: What it asks for.
        question: Its text.
        num_responses: How many responses were judged together.
        num_unfinished: How many of them were cut at the greatest length.
        reward: Their mean reward; None if none was judged.
        lowest: The lowest reward.
        highest: The highest.
    """

    group_id: str
    step: int
    question_id: str
    skill: str
    question: str
    num_responses: int
    num_unfinished: int
    reward: float | None
    lowest: float | None
    highest: float | None


class GroupIndex:
    """All groups in a run's journal of responses.

    Args:
        folder: Folder of the run.

    Attributes:
        rows: The groups in the journal's order.
    """

    def __init__(self, folder: Path) -> None:
        self.rows: list[ListedGroup] = []
        self._places: dict[str, Place] = {}
        self._journal = GrowingJournal(folder, JOURNAL_NAME)
        self._path = folder / JOURNAL_NAME
        self._num_in_step: dict[int, int] = {}
        self._edition = 0

    @property
    def edition(self) -> int:
        """Grows each time the journal was replaced and `rows` begins anew."""
        return self._edition

    def refresh(self) -> None:
        """Read what was added.

        Raises:
            AppUsageError: The journal holds something else.
        """
        for place, line in self._journal.look():
            self._follow_edition()
            number = self._num_in_step[line["step"]] = self._num_in_step.get(line["step"], 0) + 1
            group_id = f"{line['step']}-{number}"
            try:
                self.rows.append(describe_row(group_id, line))
            except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
                raise AppUsageError(
                    f"{self._path} doesn't hold groups of responses; it was written by something else"
                ) from error
            self._places[group_id] = place
        self._follow_edition()

    def read(self, group_id: str) -> dict[str, Any] | None:
        """Read a group as it is in the journal; None if there is none of this id."""
        self.refresh()
        place = self._places.get(group_id)
        return None if place is None else self._journal.read(place)

    def _follow_edition(self) -> None:
        if self._journal.edition != self._edition:
            self._edition = self._journal.edition
            self.rows.clear()
            self._places.clear()
            self._num_in_step.clear()


def describe_row(group_id: str, group: Mapping[str, Any]) -> ListedGroup:
    """Describe a group of the journal in brief."""
    responses = group["responses"]
    rewards = [float(response["reward"]) for response in responses if response["reward"] is not None]
    return ListedGroup(
        group_id=group_id,
        step=group["step"],
        question_id=str(group["question_id"]),
        skill=str(group["skill"]),
        question=str(group["question"]),
        num_responses=len(responses),
        num_unfinished=sum(not response["finished"] for response in responses),
        reward=math.fsum(rewards) / len(rewards) if rewards else None,
        lowest=min(rewards, default=None),
        highest=max(rewards, default=None),
    )
