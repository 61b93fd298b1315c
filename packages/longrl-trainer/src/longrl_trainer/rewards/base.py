"""What a reward is: a judgement of one response.

A reward that can't judge (its judge is unreachable, the question is of a kind it doesn't know) returns no value. Such
a response is left out of its group; it is never scored 0, which would teach the model that it was wrong.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

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


class Reward(Protocol):
    """What an entry point in the group `longrl_trainer.rewards` provides: a class of this shape, or a `ResponseReward`.

    The class has no arguments, unless it has settings: then its attribute `Settings` is their model, a `Section`
    (`longrl_trainer.config.sections`), and its only argument an object of it.
    """

    def judge(self, requests: Sequence[RewardRequest]) -> Sequence[RewardResult]:
        """Judge all responses of a step that this process has to judge, one result each in the same order."""
        ...


class ResponseReward(Protocol):
    """A reward that is quick enough to judge one response after the other."""

    def score(self, response_text: str, *, finished: bool, record: QuestionRecord) -> RewardResult:
        """Judge one response; `finished` tells whether the model ended it itself."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class OneByOne:
    """A `ResponseReward` as a `Reward`."""

    reward: ResponseReward

    def judge(self, requests: Sequence[RewardRequest]) -> list[RewardResult]:
        """Judge one response after the other."""
        return [
            self.reward.score(request.response_text, finished=request.finished, record=request.record)
            for request in requests
        ]
