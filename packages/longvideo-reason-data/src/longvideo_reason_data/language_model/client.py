"""Asking a language model behind any server that speaks the OpenAI protocol.

Each request is answered from the journal when it was ever answered before; otherwise it is sent, repeated where that
can help, and written down before it is used. A request that fails ends in a typed outcome, so that the caller can drop
the item and say why; only what concerns every request alike (no server, no such model, a wrong key, no credit) is an
error.
"""

import asyncio
import random
from collections import Counter
from decimal import Decimal
from itertools import count
from types import TracebackType
from typing import Self

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt

from longvideo_reason_data.errors import DataError, UsageError
from longvideo_reason_data.language_model.accounts.ledger import Ledger
from longvideo_reason_data.language_model.accounts.response_cache import ResponseCache, StoredResponse
from longvideo_reason_data.language_model.calls import ModelCalls
from longvideo_reason_data.language_model.chat_protocol import write_content
from longvideo_reason_data.language_model.failures import AttemptError, RejectedError
from longvideo_reason_data.language_model.gates import AdaptiveConcurrency, RateLimits
from longvideo_reason_data.language_model.requests import PICTURE_TOKENS, Outcome, Reply, Request, without_reasoning
from longvideo_reason_data.language_model.server import ModelServer
from longvideo_reason_data.language_model.structured_output import read_object

_LONGEST_WAIT_SECONDS = 300.0
_DRAIN_SECONDS = 30.0
_MOST_GIVEN_UP_IN_A_ROW = 8
_MOST_REJECTED_ALIKE = 4
_MOST_UNFIT_ALIKE = 32  # more than the requests about one video that is out of the ordinary


class LanguageModel:
    """A client of one server; an async context manager.

    On leaving, answers that are under way are waited for and kept, for thirty seconds at most.

    Args:
        base_url: Address of the server up to and including `/v1`.
        cache: The journal of answers.
        ledger: The ledger of calls, with the prices; one of this run only when not given.
        num_parallel: Most requests under way at a time; fewer while the server is overloaded.
        num_attempts: How often a request is sent before it is given up.
        timeout_seconds: Longest wait for one answer.
        first_wait_seconds: Wait before the second attempt; doubled each time, unless the server names a time.
        requests_per_minute: Most requests per minute.
        tokens_per_minute: Most tokens read and written per minute, on average.
        max_cost: Most that all calls in the ledger may cost together, in the currency of its prices.
        picture_tokens: Most tokens that the server counts for a picture; the limit on the cost rests on it.

    Raises:
        UsageError: When the address or the key can't be one.
    """

    def __init__(
        self,
        base_url: str,
        cache: ResponseCache,
        *,
        ledger: Ledger | None = None,
        num_parallel: int = 16,
        num_attempts: int = 6,
        timeout_seconds: float = 300.0,
        first_wait_seconds: float = 1.0,
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        max_cost: Decimal | None = None,
        picture_tokens: int = PICTURE_TOKENS,
    ) -> None:
        self.ledger = ledger if ledger is not None else Ledger()
        self.ledger.complete_from(cache)
        self._cache = cache
        self._num_attempts, self._first_wait_seconds = num_attempts, first_wait_seconds
        self._max_cost = max_cost
        self._server = ModelServer(base_url, num_parallel=num_parallel, timeout_seconds=timeout_seconds)
        self._concurrency = AdaptiveConcurrency(num_parallel)
        self._calls = ModelCalls(
            self._server,
            cache,
            self.ledger,
            self._concurrency,
            RateLimits(requests_per_minute=requests_per_minute, tokens_per_minute=tokens_per_minute),
            max_cost=max_cost,
            picture_tokens=picture_tokens,
        )
        # Pictures are made while others are answered, but not for more requests than will soon be sent.
        self._prepared = asyncio.Semaphore(2 * num_parallel)
        self._under_way: dict[str, asyncio.Task[Reply]] = {}
        self._num_given_up_in_a_row = 0
        self._rejected_alike: Counter[tuple[str, str, str]] = Counter()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._calls.close(_DRAIN_SECONDS)
        finally:
            tasks = list(self._under_way.values())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._server.client.close()

    @property
    def num_parallel(self) -> int:
        """Requests that may be under way now, as far as the server bears them."""
        return self._concurrency.limit

    async def check_model(self, model: str) -> None:
        """Find out before anything is sent whether a model can be asked.

        Raises:
            UsageError: When it can't be: not served, or without a price though the cost is limited.
            DataError: When the server can't be reached or refuses the key.
        """
        if self._max_cost is not None and model not in self.ledger.prices:
            raise UsageError(
                f"--max-cost {self._max_cost}: the prices of {model!r} aren't known; "
                "give --prompt-price and --completion-price, per million tokens"
            )
        await self._server.check_model(model)

    async def ask(self, request: Request) -> Reply:
        """Answer a request from the journal or by the server; equal requests at one time are sent once.

        Raises:
            UsageError: When the model can't be asked; see `check_model`.
            DataError: When the server can't be reached, refuses the key, or fails one request after the other.
        """
        stored = self._cache.get(request.key)
        if stored is not None:
            self.ledger.num_cached += 1
            return judge(stored, request)
        task = self._under_way.get(request.key)
        if task is None:
            task = asyncio.create_task(self._ask_server(request))
            self._under_way[request.key] = task
            task.add_done_callback(lambda ended: self._forget(request.key, ended))
        else:
            self.ledger.num_cached += 1
        return await asyncio.shield(task)  # who asked may give up; an answer that is paid for is kept all the same

    def _forget(self, key: str, task: asyncio.Task[Reply]) -> None:
        self._under_way.pop(key, None)
        if not task.cancelled():
            task.exception()  # seen, also when nobody waits for it any more

    async def _ask_server(self, request: Request) -> Reply:
        async with self._prepared:
            await self.check_model(request.model)
            try:
                content = await asyncio.to_thread(write_content, request)
            except DataError as error:
                return Reply(outcome=Outcome.DAMAGED_INPUT, text=str(error))
            attempts = AsyncRetrying(
                stop=stop_after_attempt(self._num_attempts),
                retry=retry_if_exception(_may_pass),
                wait=self._wait_seconds,
                reraise=True,
            )
            try:
                stored = await attempts(self._calls.call, request, content, count(1))
            except AttemptError as error:
                if error.outcome is not Outcome.OVER_BUDGET:
                    await self._give_up(error)
                return Reply(outcome=error.outcome, text=error.detail)
            except RejectedError as error:
                self._hold_to_use(request, error)
                return Reply(outcome=Outcome.REJECTED, text=str(error))
            self._num_given_up_in_a_row = 0
            return judge(stored, request)

    def _hold_to_use(self, request: Request, error: RejectedError) -> None:
        """End the build when the server takes no request of a form at all, before every item is lost to it."""
        rejection = error.rejection
        if rejection.is_unwelcome or self._cache.knows_form(request.model, request.form):
            return  # others pass
        alike = (request.model, request.form, rejection.alike)
        self._rejected_alike[alike] += 1
        if self._rejected_alike[alike] >= (_MOST_UNFIT_ALIKE if rejection.is_of_content else _MOST_REJECTED_ALIKE):
            raise DataError(
                f"{self._server.base_url}: {request.model} rejects every request {request.form.partition(' ')[2]} "
                f"({rejection}); choose a model or settings that fit together, and run again to go on"
            ) from error

    async def _give_up(self, error: AttemptError) -> None:
        """End the build when the server can no longer be used, before every item is lost to it."""
        self._num_given_up_in_a_row += 1
        if error.outcome is Outcome.CONNECTION and not await self._server.is_there():
            failure = f"the server stopped answering ({error.detail})"
        elif self._num_given_up_in_a_row >= _MOST_GIVEN_UP_IN_A_ROW:
            failure = f"the server failed {self._num_given_up_in_a_row} requests one after the other ({error.detail})"
        else:
            return
        raise DataError(f"{self._server.base_url}: {failure}; run again to go on") from error

    def _wait_seconds(self, state: RetryCallState) -> float:
        """Wait as long as the server says, or ever longer with a random part."""
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, AttemptError) and error.wait_seconds is not None:
            return error.wait_seconds
        wait = self._first_wait_seconds * 2 ** (state.attempt_number - 1)
        return min(wait, _LONGEST_WAIT_SECONDS) * random.uniform(0.75, 1.25)


def judge(stored: StoredResponse, request: Request) -> Reply:
    """Turn an answer of the server into an outcome, and find the object in it where one was asked for."""
    if stored.finish == "length" and not without_reasoning(stored.text).strip():
        used = f"all {request.max_tokens} tokens were used up by reasoning before the answer began; raise max_tokens"
        return Reply(outcome=Outcome.ONLY_REASONING, text=used)
    if stored.finish == "length":
        return Reply(outcome=Outcome.TRUNCATED, text=stored.text)
    if stored.finish in ("refusal", "content_filter"):
        return Reply(outcome=Outcome.REFUSED, text=stored.text)
    if not stored.text.strip():
        return Reply(outcome=Outcome.INVALID, text="the answer is empty")
    if request.schema is None:
        return Reply(outcome=Outcome.ANSWERED, text=stored.text)
    try:
        value = read_object(stored.text, request.schema)
    except ValueError as error:
        return Reply(outcome=Outcome.INVALID, text=str(error))
    return Reply(outcome=Outcome.ANSWERED, text=stored.text, value=value)


def _may_pass(error: BaseException) -> bool:
    """Whether another attempt is worth while; a server that wants to be left alone for longer is."""
    if not isinstance(error, AttemptError) or error.outcome is Outcome.OVER_BUDGET:
        return False
    return error.wait_seconds is None or error.wait_seconds <= _LONGEST_WAIT_SECONDS
