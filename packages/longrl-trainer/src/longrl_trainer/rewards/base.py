"""The interface of a reward: a judgement of responses, one by one or all of a step together.

A reward that can't judge, because its judge is unreachable, for example, returns no value. Such a response is omitted
from its group; it is never scored 0, which would teach the model that the response was wrong. A reward for questions of
some types only says so, and isn't asked about others; these it neither scores nor omits.
"""

from collections.abc import Awaitable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol, runtime_checkable

from longvideo_reason_data.records.record import QuestionRecord


class RewardStatus(StrEnum):
    """Outcome of a judgement."""

    OK = "ok"
    NO_ANSWER = "no_answer"
    """The response contains no answer."""
    AMBIGUOUS = "ambiguous"
    """The response contains several answers."""
    TRUNCATED = "truncated"
    """The response was cut at the token limit before it was complete."""
    CONTROL_TOKEN = "control_token"
    """The response contains a control token of the model, and gets nothing."""
    VERIFIER_ERROR = "verifier_error"
    """The reward could not judge; there is no value."""
    NOT_APPLICABLE = "not_applicable"
    """The reward is for questions of other types; there is no value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardResult:
    """One judgement.

    Attributes:
        value: Usually between 0 and 1; None when there is none.
        status: Its outcome.
        parsed: What was read in the response and compared with the right answer, for people.
    """

    value: float | None
    status: RewardStatus
    parsed: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardRequest:
    """One response to judge."""

    response_text: str
    finished: bool
    """Whether the model ended the response itself."""
    record: QuestionRecord
    """The question that it answers."""
    has_control_token: bool = False
    """Whether it contains a control token of the model other than the one that ends it; the text doesn't show them."""


class Reward(Protocol):
    """The interface of the classes behind the entry points in the group `longrl_trainer.rewards`.

    The class is created without arguments. One with settings of its own has a nested pydantic model called `Settings`
    and is created with an instance of it; recipes then set them next to the weight. One that is for questions of some
    types only names them in `question_types`, a frozenset of
    `longvideo_reason_data.question_types.QuestionType`. One with `is_only_logged = True` may have no weight.
    """

    def score(self, response_text: str, *, finished: bool, record: QuestionRecord) -> RewardResult:
        """Judge one response; `finished` says whether the model ended it itself."""
        ...


@runtime_checkable
class BatchReward(Protocol):
    """A reward that judges all responses of a step together, such as with many requests to a server at once."""

    def judge(self, requests: Sequence[RewardRequest]) -> Sequence[RewardResult] | Awaitable[Sequence[RewardResult]]:
        """Judge responses, one result each, in their order; it may be a coroutine."""
        ...


@runtime_checkable
class JournaledReward(Protocol):
    """A reward that keeps files in the run's folder: only the first rank opens it, and judges all responses with it."""

    def opened(self, folder: Path) -> AbstractContextManager[None]:
        """Open it before a model is loaded, and close it at the end of the run.

        Args:
            folder: A folder of its own, which need not exist yet.

        Raises:
            TrainerError: It can't judge at all.
        """
        ...
