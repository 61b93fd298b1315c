"""One call to a server: through three gates, into the ledger, onto the wire, and into the journal.

A call needs a slot, must fit the limits per minute and the limit on the cost (all in `gates`). It stands in the ledger
before it is sent, and its answer is on disk before anybody sees it. Whether a failed call is worth another attempt is
for the language model to say.
"""

import asyncio
import logging
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from decimal import Decimal

import openai

from longvideo_reason_data.errors import DataError, brief
from longvideo_reason_data.language_model.accounts.ledger import Ledger
from longvideo_reason_data.language_model.accounts.prices import TokenUsage
from longvideo_reason_data.language_model.accounts.response_cache import ResponseCache, StoredResponse
from longvideo_reason_data.language_model.adaptation import NEUTRAL_SAMPLING, Adaptation, adapt
from longvideo_reason_data.language_model.chat_protocol import Completion, Content, read_completion, write_body
from longvideo_reason_data.language_model.failures import (
    AttemptError,
    RejectedError,
    StreamOnlyError,
    classify_answer,
    classify_failure,
)
from longvideo_reason_data.language_model.gates import AdaptiveConcurrency, RateLimits, Slot, Spending
from longvideo_reason_data.language_model.requests import Outcome, Request
from longvideo_reason_data.language_model.server import ModelServer

_logger = logging.getLogger(__name__)


class ModelCalls:
    """Calls to one server.

    Args:
        server: The server.
        cache: Where answers are kept.
        ledger: Where calls are written down.
        concurrency: How many calls at a time.
        rate_limits: How many calls and tokens per minute.
        max_cost: The limit on the cost of all calls in the ledger, or None.
        picture_tokens: Most tokens that the server counts for a picture.
    """

    def __init__(
        self,
        server: ModelServer,
        cache: ResponseCache,
        ledger: Ledger,
        concurrency: AdaptiveConcurrency,
        rate_limits: RateLimits,
        *,
        max_cost: Decimal | None,
        picture_tokens: int,
    ) -> None:
        self._server, self._cache, self._ledger = server, cache, ledger
        self._concurrency, self._rate_limits = concurrency, rate_limits
        self._spending = Spending(ledger, max_cost)
        self._max_cost, self._picture_tokens = max_cost, picture_tokens
        self._adaptations: dict[str, Adaptation] = {}
        self._told: set[tuple[str, str]] = set()
        self._num_sent = 0
        self._is_closed = False
        self._nothing_sent = asyncio.Event()
        self._nothing_sent.set()

    async def close(self, wait_seconds: float) -> None:
        """Send nothing more, and wait for the answers that are under way."""
        self._is_closed = True
        try:
            await asyncio.wait_for(self._nothing_sent.wait(), wait_seconds)
        except TimeoutError:
            return  # what these may have cost stands in the ledger

    async def call(self, request: Request, content: Content, attempts: Iterator[int]) -> StoredResponse:
        """Send a request, and again in another way where the server turns out to want that.

        Args:
            request: What is asked.
            content: The user's message, with its pictures.
            attempts: Numbers what is sent, from 1 in this run.

        Raises:
            AttemptError: When it fails in a way that may pass, or would break the limit on the cost.
            RejectedError: When the server calls it wrong, however it is put.
            DataError: When the failure concerns every request.
        """
        async with self._concurrency.slot() as slot:
            adaptation, said = self._adaptations.get(request.model, Adaptation()), ""
            while True:
                try:
                    stored = await self._call_once(request, content, adaptation, next(attempts), slot)
                except RejectedError as error:
                    adapted = adapt(adaptation, request, error.rejection)
                    if adapted is None:
                        raise
                    adaptation, said = adapted, str(error.rejection)
                except AttemptError:
                    if said:
                        self._learn(request, adaptation, said)  # it wasn't rejected any more
                    raise
                else:
                    self._learn(request, adaptation, said)
                    return stored

    def _learn(self, request: Request, adaptation: Adaptation, said: str) -> None:
        """Remember for other requests how one was put that the server didn't reject, and say so once."""
        known = self._adaptations.get(request.model, Adaptation())
        if not said:
            if not known.takes_sampling and adaptation.sampling == NEUTRAL_SAMPLING:
                self._adaptations[request.model] = replace(known, takes_sampling=True)
            return
        self._adaptations[request.model] = known.joined(adaptation)
        for change in adaptation.changes(request):
            if (request.model, change) not in self._told:
                self._told.add((request.model, change))
                _logger.warning("%s: %s is asked %s (%s)", self._server.base_url, request.model, change, said)

    async def _call_once(
        self, request: Request, content: Content, adaptation: Adaptation, attempt: int, slot: Slot
    ) -> StoredResponse:
        sent = adaptation.applied(request)
        most_prompt, most_completion = sent.most_prompt_tokens(self._picture_tokens), sent.max_tokens
        most_tokens = most_prompt + most_completion
        taken = await self._rate_limits.wait(most_tokens)
        started = await self._spending.start(
            key=request.key,
            model=request.model,
            attempt=attempt,
            most_prompt=most_prompt,
            most_completion=most_completion,
        )
        if started is None:
            left = f"{self._ledger.most_cost} may be spent already, and this request may cost "
            left += str(self._ledger.most_cost_of(request.model, most_prompt, most_completion))
            raise AttemptError(Outcome.OVER_BUDGET, f"--max-cost {self._max_cost} doesn't suffice: {left}")
        outcome, usage, is_confirmed = Outcome.CONNECTION, TokenUsage(), False  # unless the end is seen
        with self._sent():
            begin = time.perf_counter()
            try:
                completion = await self._send(write_body(request, content, adaptation), request.model)
            except AttemptError as error:
                outcome, usage = error.outcome, error.usage or TokenUsage()
                is_confirmed = error.usage is not None or not error.may_be_charged
                if error.is_overload:
                    self._concurrency.overloaded(slot)
                raise
            except RejectedError:
                outcome, is_confirmed = Outcome.REJECTED, True
                raise
            except DataError as error:
                outcome, is_confirmed = Outcome.SERVER_ERROR, not isinstance(error, StreamOnlyError)
                raise
            else:
                outcome, is_confirmed = Outcome.ANSWERED, completion.usage is not None
                usage = completion.usage or TokenUsage()
                stored = StoredResponse(
                    key=request.key,
                    model=request.model,
                    text=completion.text or "",
                    finish=completion.finish,
                    call=started.call,
                    form=request.form,
                    sampling=adaptation.sampling,
                    adapted=adaptation.changes(request),
                    **usage.model_dump(),
                )
                await self._cache.store(stored)
                self._concurrency.answered()
            finally:
                seconds = time.perf_counter() - begin
                self._spending.end(started, outcome, usage, is_confirmed=is_confirmed, latency_seconds=seconds)
                self._rate_limits.settle(taken, used_tokens=usage.total, most_tokens=most_tokens)
        self._hold_to_bounds(usage, most_prompt, most_completion)
        return stored

    async def _send(self, body: dict[str, object], model: str) -> Completion:
        if self._is_closed:
            raise AttemptError(Outcome.CONNECTION, "the client is closing")
        server = self._server
        completions = server.client.chat.completions.with_raw_response
        try:
            raw = await completions.create(**body)  # pyright: ignore[reportArgumentType, reportCallIssue]
        except openai.OpenAIError as error:
            raise classify_failure(error, server.base_url, model) from error
        usage, flaw = None, "the server's answer holds no choice"
        try:
            completion = read_completion(raw.text)
        except ValueError as error:  # no JSON, or not of the form
            flaw = f"the server's answer breaks the protocol ({brief(error)})"
        else:
            if completion.text is not None:
                # A secret may have been put together from several parts of the answer.
                return replace(completion, text=server.redaction.clean(completion.text))
            usage = completion.usage
        raise classify_answer(raw.text, server.base_url, model, usage, flaw=flaw)

    def _hold_to_bounds(self, usage: TokenUsage, most_prompt: int, most_completion: int) -> None:
        """Stop when the server counts more than was set aside, because then the limit on the cost isn't one."""
        if self._max_cost is None:
            return
        if usage.prompt_tokens > most_prompt:
            raise DataError(
                f"{self._server.base_url}: the server counts {usage.prompt_tokens} tokens where at most {most_prompt} "
                f"were expected, and --max-cost rests on that; give --picture-tokens more than {self._picture_tokens}"
            )
        if usage.completion_tokens > most_completion:
            raise DataError(
                f"{self._server.base_url}: the server writes {usage.completion_tokens} tokens where it was allowed "
                f"{most_completion}; --max-cost can't be kept with it"
            )

    @contextmanager
    def _sent(self) -> Generator[None]:
        self._num_sent += 1
        self._nothing_sent.clear()
        try:
            yield
        finally:
            self._num_sent -= 1
            if not self._num_sent:
                self._nothing_sent.set()
