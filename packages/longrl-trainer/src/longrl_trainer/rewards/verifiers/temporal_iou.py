"""Reward for time ranges: intersection over union of all that are given and all that are right.

Without any overlap every answer gets 0, and so nothing to learn from. With a distance term w an answer gets

    w + (1 - w) IoU      if it overlaps the right ranges
    w (1 - gap / hull)   otherwise, with the gap between both and the hull of all ranges, as in GIoU (arXiv 1902.09630)

which grows from 0 as it comes nearer, and is never less than what no answer at all gets.

    3.5 - 7   3.5 s to 7 s   [3, 7] and [10, 12]   00:03-00:07   1:02:03 until 1:02:10   from 3 to 7 seconds
"""

import re
import unicodedata
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from longrl_trainer.rewards.base import RewardResult, RewardStatus
from longrl_trainer.rewards.verifiers.comparison import judge_answer
from longvideo_reason_data.question_types import QuestionType
from longvideo_reason_data.records.record import QuestionRecord

_MOST_RANGES = 64
_LONGEST_ANSWER = 4000  # characters
_TIME = r"(?:\d{1,3}:)?(?:\d{1,4}:\d{1,2}(?:\.\d{1,6})?)|\d{1,7}(?:\.\d{1,6})?"
_UNIT = r"(?: ?(?:seconds?|secs?|s)\b)?"
_SEPARATOR = r" ?(?:-|–|—|→|,|;|\b(?:to|until|till|through|and|bis|à|a)\b|至|到|から) ?"
_RANGE = re.compile(rf"(?<![\d.:])({_TIME}){_UNIT}{_SEPARATOR}({_TIME}){_UNIT}")


class TimeRange(NamedTuple):
    """A time range in seconds."""

    start_seconds: float
    end_seconds: float

    def __str__(self) -> str:
        return f"{self.start_seconds:g}-{self.end_seconds:g}"


class TemporalIouSettings(BaseModel):
    """How answers without overlap are told apart."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    distance_weight: float = Field(default=0.0, ge=0, lt=1)
    """What an answer gets at most without any overlap, the more the nearer it is."""


class TemporalIouReward:
    """From 0 to 1 the better the time ranges of an answer cover the right ones, and nothing else."""

    Settings = TemporalIouSettings
    question_types = frozenset({QuestionType.GROUNDING})

    def __init__(self, settings: TemporalIouSettings) -> None:
        self._distance_weight = settings.distance_weight

    def score(self, response_text: str, *, finished: bool, record: QuestionRecord) -> RewardResult:
        """Judge one response."""
        return judge_answer(response_text, finished=finished, record=record, read=read_ranges, compare=self._compare)

    def _compare(self, given: tuple[TimeRange, ...], right: tuple[TimeRange, ...]) -> float:
        weight, overlap = self._distance_weight, intersection_over_union(given, right)
        if overlap > 0:
            return weight + (1 - weight) * overlap
        return weight * (1 - relative_gap(given, right))


def read_ranges(text: str) -> tuple[TimeRange, ...] | RewardStatus:
    """The time ranges of an answer in their order; none if one of them ends before it has begun."""
    text = unicodedata.normalize("NFKC", text)
    found = [TimeRange(_seconds(start), _seconds(end)) for start, end in _RANGE.findall(text[:_LONGEST_ANSWER])]
    is_valid = found and len(found) <= _MOST_RANGES and all(start < end for start, end in found)
    return tuple(sorted(found)) if is_valid else RewardStatus.NO_ANSWER


def intersection_over_union(given: tuple[TimeRange, ...], right: tuple[TimeRange, ...]) -> float:
    """Seconds that are in both by seconds that are in either; ranges of one side may overlap."""
    both = _length(given) + _length(right)
    union = _length((*given, *right))
    return (both - union) / union


def relative_gap(given: tuple[TimeRange, ...], right: tuple[TimeRange, ...]) -> float:
    """The shortest distance between ranges of both sides, by the length of the whole that all of them span."""
    gap = min(max(a.start_seconds - b.end_seconds, b.start_seconds - a.end_seconds) for a in given for b in right)
    everything = (*given, *right)
    hull = max(each.end_seconds for each in everything) - min(each.start_seconds for each in everything)
    return max(gap, 0.0) / hull


def _length(ranges: tuple[TimeRange, ...]) -> float:
    """Seconds that are in at least one of them."""
    total = reached = 0.0
    for start, end in sorted(ranges):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def _seconds(written: str) -> float:
    seconds = 0.0
    for part in written.split(":"):
        seconds = 60 * seconds + float(part)
    return seconds
