"""What a reward is: a judgement of responses, one by one or all of a step together.

A reward that can't judge (its judge is unreachable, the question is of a kind it doesn't know) returns no value. Such
a response is left out of its group; it is never scored 0, which would teach the model that it was wrong.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, runtime_checkable

from longvideo_reason_data.records.record import QuestionRecord


class RewardStatus(StrEnum):
    """How a judgement came about."""

    OK = "ok"
    NO_ANSWER = "no_answer"
    """The response gives no answer."""
    AMBIGUOUS = "ambiguous"
    """The response gives several answers."""
    TRUNCATED = "truncated"
    """The response was cut at the token limit before it was complete."""
    VERIFIER_ERROR = "verifier_error"
    """The reward could not judge; there is no value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardResult:
    """One judgement, usually between 0 and 1; None when there is none."""

    value: float | None
    status: RewardStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardRequest:
    """One response to be judged."""

    response_text: str
    finished: bool
    """Whether the model ended it itself."""
    record: QuestionRecord
    """The question that it answers."""


class Reward(Protocol):
    """What an entry point in the group `longrl_trainer.rewards` provides: a class with this shape.

    It is made without arguments. One with settings of its own has them as a nested pydantic model called `Settings` and
    is made with them; recipes then give them beside the weight.
    """

    def score(self, response_text: str, *, finished: bool, record: QuestionRecord) -> RewardResult:
        """Judge one response; `finished` tells whether the model ended it itself."""
        ...


@runtime_checkable
class BatchReward(Protocol):
    """A reward that judges all responses of a step together, such as one that asks a server for many at once."""

    def judge(self, requests: Sequence[RewardRequest]) -> Sequence[RewardResult]:
        """Judge responses, one result each, in their order."""
        ...
