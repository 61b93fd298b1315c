"""Reward for open answers: a language model behind any OpenAI-compatible server says whether an answer is right.

Judges can be manipulated, so this one sees nothing but the extracted answer, marked as data and bounded in length, and
before it judges anything it has to reject a set of empty, general and injected answers
(`longvideo_reason_data.filtering.judging`). Answers with marks by which programs separate messages are wrong without
being asked about. The client is that of the data package: every judgement is kept in a journal and paid once, every
call stands in a ledger, and `max_cost` is never exceeded.
"""

import asyncio
import re
import time
from collections.abc import Coroutine, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from longrl_trainer.errors import StoppedError, TrainerError, TrainerUsageError
from longrl_trainer.rewards.base import RewardRequest, RewardResult, RewardStatus
from longrl_trainer.rewards.event_loop import wait_for
from longrl_trainer.rewards.verifiers.comparison import find_answer
from longvideo_reason_data.errors import DataError, UsageError
from longvideo_reason_data.filtering.judging import Judge
from longvideo_reason_data.filtering.settings import FilterSettings
from longvideo_reason_data.language_model.accounts.ledger import Ledger
from longvideo_reason_data.language_model.requests import Outcome, Reply
from longvideo_reason_data.language_model.server import check_access
from longvideo_reason_data.language_model.session import ClientSession, open_session
from longvideo_reason_data.language_model.settings import ClientSettings
from longvideo_reason_data.prompts.templates import ANSWERING_PROMPTS, load_prompts
from longvideo_reason_data.question_types import QuestionType

ResultT = TypeVar("ResultT")

_NAME = "rewards.judge"
_LONGEST_WAIT_SECONDS = 60.0
_CHECK_SECONDS = 1.0
_MESSAGE_MARKS = re.compile(
    r"<\|[^|]{0,40}\|>|<<<|>>>|</?s>|\[/?INST\]|<(?:start|end)_of_turn>|</?(?:think|answer)>", re.I
)
_PASSING = frozenset({Outcome.RATE_LIMITED, Outcome.TIMEOUT, Outcome.SERVER_ERROR, Outcome.CONNECTION})


class JudgeSettings(BaseModel):
    """Which model judges, and what it may cost."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    base_url: str
    """Address of the server up to and including `/v1`; its key is read from OPENAI_API_KEY."""
    model: str
    """Name of the model on the server."""
    patience_seconds: float = Field(default=900.0, gt=0, le=1e6)
    """The run saves its state and ends when no judgement has come for so long; with several processes it has to be less
    than `parallel.exchange_patience_seconds`, for which the others wait.
    """
    max_tokens: int = Field(default=1024, ge=1)
    """Most tokens of a judgement, with its reasoning."""
    num_parallel: int = Field(default=16, ge=1)
    """Most requests under way at a time."""
    num_attempts: int = Field(default=6, ge=1)
    """How often a request is sent before it counts as failed."""
    first_wait_seconds: float = Field(default=1.0, gt=0)
    """Wait before the second attempt, doubled each time."""
    timeout_seconds: float = Field(default=300.0, gt=0)
    """Longest wait for a judgement."""
    max_cost: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """Most that all judgements of the run may cost; needs both prices."""
    prompt_price: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """Price of a million tokens that the judge reads."""
    completion_price: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """Price of a million tokens that it writes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _TriedJudge:
    judge: Judge
    ledger: Ledger


class JudgeReward:
    """1 for an open answer that a judge finds right, 0 for others; no value where it gives no judgement."""

    Settings = JudgeSettings
    question_types = frozenset({QuestionType.OPEN})

    def __init__(self, settings: JudgeSettings) -> None:
        self._settings = settings
        names = ("num_parallel", "num_attempts", "timeout_seconds", "first_wait_seconds")
        prices = ("prompt_price", "completion_price", "max_cost")
        self._client = ClientSettings(**{name: getattr(settings, name) for name in (*names, *prices)})
        self._tried: _TriedJudge | None = None
        try:
            check_access(settings.base_url)
            self._prices = self._client.prices(settings.model)
        except UsageError as error:
            raise _translated(error) from error

    @contextmanager
    def opened(self, folder: Path) -> Generator[None]:
        """Open the journal and the ledger, and try the judge; see `JournaledReward`."""
        settings = self._settings
        with ExitStack() as held:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                session = held.enter_context(open_session(settings.base_url, folder, self._client, self._prices))
                held.callback(lambda: wait_for(session.model.__aexit__(None, None, None)))
                wait_for(self._try(session))
            except DataError as error:
                raise _translated(error) from error
            try:
                yield
            finally:
                self._tried = None

    async def _try(self, session: ClientSession) -> None:
        prompts = load_prompts(names=ANSWERING_PROMPTS)
        limits = FilterSettings(max_tokens=self._settings.max_tokens)
        judge = Judge(session.model, self._settings.model, prompts, limits)
        await session.model.check_model(self._settings.model)
        await judge.check()
        self._tried = _TriedJudge(judge=judge, ledger=session.model.ledger)

    async def judge(self, requests: Sequence[RewardRequest]) -> list[RewardResult]:
        """Judge responses; one that gets no judgement isn't judged.

        Raises:
            StoppedError: No judgement has come for longer than the recipe's patience, or `max_cost` is used up.
        """
        if self._tried is None:
            return [RewardResult(value=None, status=RewardStatus.VERIFIER_ERROR)] * len(requests)
        said = [find_answer(each.response_text, finished=each.finished) for each in requests]
        asked = {
            place: answer
            for place, answer in enumerate(said)
            if not isinstance(answer, RewardStatus) and not _MESSAGE_MARKS.search(answer)
        }
        judgements = await self._ask(self._tried, requests, asked)
        return [_result(answer, judgements.get(place, False)) for place, answer in enumerate(said)]

    async def _ask(
        self, tried: _TriedJudge, requests: Sequence[RewardRequest], asked: Mapping[int, str]
    ) -> dict[int, bool | None]:
        """The judgement on every answer, None where there is none; again and again while the judge is down."""
        judgements: dict[int, bool | None] = {}
        downtime = _Downtime(tried.ledger, self._settings.patience_seconds)
        wait_seconds = self._settings.first_wait_seconds
        while waiting := {place: answer for place, answer in asked.items() if place not in judgements}:
            num_made = tried.ledger.num_made
            outcomes = await _gather(
                [tried.judge.same_answer(requests[place].record, answer) for place, answer in waiting.items()], downtime
            )
            for place, outcome in zip(waiting, outcomes, strict=True):
                if isinstance(outcome, bool):
                    judgements[place] = outcome
                elif isinstance(outcome, Reply) and outcome.outcome is Outcome.OVER_BUDGET:
                    raise StoppedError(_renamed(f"{_NAME}: {outcome.text}; raise it to go on"))
                elif isinstance(outcome, Reply) and outcome.outcome not in _PASSING:
                    judgements[place] = None
                elif isinstance(outcome, Reply | DataError):
                    downtime.failure = outcome.text if isinstance(outcome, Reply) else str(outcome)
                else:
                    raise outcome
            if tried.ledger.num_made > num_made:
                return {place: judgements.get(place) for place in asked}  # it is there; what failed, fails by itself
            downtime.check()
            if len(judgements) < len(asked):
                await asyncio.sleep(min(wait_seconds, downtime.seconds_left))
                wait_seconds = min(2 * wait_seconds, _LONGEST_WAIT_SECONDS)
        return judgements


class _Downtime:
    """How long no answer has come from the server; those in the journal say nothing about it."""

    def __init__(self, ledger: Ledger, patience_seconds: float) -> None:
        self.failure = "it doesn't answer"
        self._ledger, self._patience_seconds = ledger, patience_seconds
        self._num_made, self._last_seen = ledger.num_made, time.monotonic()

    @property
    def seconds_left(self) -> float:
        return max(0.0, self._last_seen + self._patience_seconds - time.monotonic())

    def check(self) -> None:
        """Note what has come, or end the run."""
        if self._ledger.num_made > self._num_made:
            self._num_made, self._last_seen = self._ledger.num_made, time.monotonic()
        if not self.seconds_left:
            patience = f"{self._patience_seconds:g} s"
            raise StoppedError(_renamed(f"{_NAME}: no judgement for {patience} ({self.failure}); start again to go on"))


async def _gather(questions: Sequence[Coroutine[None, None, ResultT]], downtime: _Downtime) -> list[Any]:
    """The result of each, or its exception; ends the run when no answer comes for too long."""
    tasks = [asyncio.ensure_future(question) for question in questions]
    pending = set(tasks)
    try:
        while pending:
            _, pending = await asyncio.wait(pending, timeout=min(_CHECK_SECONDS, downtime.seconds_left))
            if pending:
                downtime.check()
    finally:
        for task in pending:
            task.cancel()
    return await asyncio.gather(*tasks, return_exceptions=True)


def _result(answer: str | RewardStatus, is_right: bool | None) -> RewardResult:
    if isinstance(answer, RewardStatus):
        return RewardResult(value=0.0, status=answer)
    if is_right is None:
        return RewardResult(value=None, status=RewardStatus.VERIFIER_ERROR, parsed=answer)
    return RewardResult(value=float(is_right), status=RewardStatus.OK, parsed=answer)


def _translated(error: DataError) -> TrainerError:
    kind = TrainerUsageError if isinstance(error, UsageError) else TrainerError
    return kind(_renamed(f"{_NAME}: {error}"))


def _renamed(line: str) -> str:
    """The line with the recipe's settings in place of the data package's options."""
    options = {
        "base-url": "base_url",
        "max-cost": "max_cost",
        "prompt-price": "prompt_price",
        "completion-price": "completion_price",
        "judge": "model",
    }
    for option, setting in options.items():
        line = line.replace(f"--{option}", f"{_NAME}.{setting}")
    return line
