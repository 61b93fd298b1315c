"""A judge of open answers: a language model behind any OpenAI-compatible server, tried before it is trusted.

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

from longrl_trainer.errors import StoppedError, TrainerError, TrainerUsageError
from longrl_trainer.rewards.event_loop import wait_for
from longrl_trainer.rewards.judge_settings import JudgeSettings
from longvideo_reason_data.errors import DataError, UsageError
from longvideo_reason_data.filtering.judging import Judge
from longvideo_reason_data.filtering.settings import FilterSettings
from longvideo_reason_data.language_model.accounts.ledger import Ledger
from longvideo_reason_data.language_model.requests import Outcome, Reply
from longvideo_reason_data.language_model.server import check_access
from longvideo_reason_data.language_model.session import ClientSession, open_session
from longvideo_reason_data.language_model.settings import ClientSettings
from longvideo_reason_data.prompts.templates import ANSWERING_PROMPTS, load_prompts

ResultT = TypeVar("ResultT")

_LONGEST_WAIT_SECONDS = 60.0
_CHECK_SECONDS = 1.0
_MESSAGE_MARKS = re.compile(
    r"<\|[^|]{0,40}\|>|<<<|>>>|</?s>|\[/?INST\]|<(?:start|end)_of_turn>|</?(?:think|answer)>", re.I
)
_PASSING = frozenset({Outcome.RATE_LIMITED, Outcome.TIMEOUT, Outcome.SERVER_ERROR, Outcome.CONNECTION})


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenAnswer:
    """An answer to an open question, and the right one."""

    question: str
    right: str
    given: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _TriedJudge:
    judge: Judge
    ledger: Ledger


class AnswerJudge:
    """Says whether open answers are right; only the process that opened it can ask.

    Args:
        settings: Which model, and its limits.
        name: The settings' place in the recipe, for messages.

    Raises:
        TrainerUsageError: There is no address, no key or no price where there has to be one.
    """

    def __init__(self, settings: JudgeSettings, name: str) -> None:
        self._settings, self._name = settings, name
        names = ("num_parallel", "num_attempts", "timeout_seconds", "first_wait_seconds")
        prices = ("prompt_price", "completion_price", "max_cost")
        self._client = ClientSettings(**{name: getattr(settings, name) for name in (*names, *prices)})
        self._tried: _TriedJudge | None = None
        try:
            check_access(settings.base_url)
            self._prices = self._client.prices(settings.model)
        except UsageError as error:
            raise self._translated(error) from error

    @property
    def is_open(self) -> bool:
        """Whether it can be asked."""
        return self._tried is not None

    @contextmanager
    def opened(self, folder: Path) -> Generator[None]:
        """Open the journal and the ledger, and try the judge; see `longrl_trainer.rewards.base.JournaledReward`."""
        settings = self._settings
        with ExitStack() as held:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                session = held.enter_context(open_session(settings.base_url, folder, self._client, self._prices))
                held.callback(lambda: wait_for(session.model.__aexit__(None, None, None)))
                wait_for(self._try(session))
            except DataError as error:
                raise self._translated(error) from error
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

    async def judge(self, answers: Sequence[OpenAnswer]) -> list[bool | None]:
        """Judge answers, in their order; None for one that gets no judgement.

        Raises:
            StoppedError: No judgement has come for longer than the recipe's patience, or `max_cost` is used up.
        """
        if self._tried is None:
            return [None] * len(answers)
        asked = {place: each for place, each in enumerate(answers) if not _MESSAGE_MARKS.search(each.given)}
        judgements = await self._ask(self._tried, asked)
        return [judgements.get(place, False) for place in range(len(answers))]

    async def _ask(self, tried: _TriedJudge, asked: Mapping[int, OpenAnswer]) -> dict[int, bool | None]:
        """The judgement on every answer, None where there is none; again and again while the judge is down."""
        judgements: dict[int, bool | None] = {}
        downtime = _Downtime(tried.ledger, self._settings.patience_seconds, self._name)
        wait_seconds = self._settings.first_wait_seconds
        while waiting := {place: each for place, each in asked.items() if place not in judgements}:
            num_made = tried.ledger.num_made
            outcomes = await _gather(
                [tried.judge.same_answer(each.question, each.right, each.given) for each in waiting.values()], downtime
            )
            for place, outcome in zip(waiting, outcomes, strict=True):
                if isinstance(outcome, bool):
                    judgements[place] = outcome
                elif isinstance(outcome, Reply) and outcome.outcome is Outcome.OVER_BUDGET:
                    raise StoppedError(_renamed(f"{self._name}: {outcome.text}; raise it to go on", self._name))
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

    def _translated(self, error: DataError) -> TrainerError:
        kind = TrainerUsageError if isinstance(error, UsageError) else TrainerError
        return kind(_renamed(f"{self._name}: {error}", self._name))


class _Downtime:
    """How long no answer has come from the server; those in the journal say nothing about it."""

    def __init__(self, ledger: Ledger, patience_seconds: float, name: str) -> None:
        self.failure = "it doesn't answer"
        self._ledger, self._patience_seconds, self._name = ledger, patience_seconds, name
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
            line = f"{self._name}: no judgement for {patience} ({self.failure}); start again to go on"
            raise StoppedError(_renamed(line, self._name))


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


def _renamed(line: str, name: str) -> str:
    """The line with the recipe's settings in place of the data package's options."""
    options = {
        "base-url": "base_url",
        "max-cost": "max_cost",
        "prompt-price": "prompt_price",
        "completion-price": "completion_price",
        "judge": "model",
    }
    for option, setting in options.items():
        line = line.replace(f"--{option}", f"{name}.{setting}")
    return line
