"""The gates before a request: how many are under way, how many a minute allows, and what may be spent.

How many are under way at a time is found by trying: additive increase, multiplicative decrease, as in TCP's congestion
avoidance (Chiu and Jain, 1989). Every answer widens the limit a little, until the most that the user allows, and a sign
of overload (a refusal for haste, a time-out) halves it. Requests that were sent before the last halving don't halve it
again: they tell nothing new. The limit begins at the most, so that a server which can take it is busy from the start.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from email.utils import parsedate_to_datetime

from longvideo_reason_data.language_model.accounts.ledger import CallStarted, Ledger
from longvideo_reason_data.language_model.accounts.prices import TokenUsage
from longvideo_reason_data.language_model.requests import Outcome


@dataclass(frozen=True, slots=True)
class Slot:
    """Leave to send one request.

    Attributes:
        epoch: How often the limit had been halved when it was given.
    """

    epoch: int


class AdaptiveConcurrency:
    """A gate that lets through as many requests at a time as the server seems to bear.

    Args:
        most: Most requests under way at a time, at least 1.

    Attributes:
        num_running: Requests under way.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._limit = float(most)
        self._epoch = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self.num_running = 0

    @property
    def limit(self) -> int:
        """Requests that may be under way now."""
        return int(self._limit)

    @asynccontextmanager
    async def slot(self) -> AsyncGenerator[Slot]:
        """Wait for leave to send a request, first come, first served; it ends with the block."""
        if self._waiting or self.num_running >= self.limit:
            turn = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():  # the turn had just come
                    self._leave()
                raise
        else:
            self.num_running += 1
        try:
            yield Slot(self._epoch)
        finally:
            self._leave()

    def answered(self) -> None:
        """Note an answer."""
        self._limit = min(float(self._most), self._limit + 1 / self._limit)
        self._admit()

    def overloaded(self, slot: Slot) -> None:
        """Note that the request with this slot met an overloaded server."""
        if slot.epoch == self._epoch:
            self._epoch += 1
            self._limit = max(1.0, self._limit / 2)

    def _leave(self) -> None:
        self.num_running -= 1
        self._admit()

    def _admit(self) -> None:
        while self._waiting and self.num_running < self.limit:
            turn = self._waiting.popleft()
            if not turn.done():
                self.num_running += 1
                turn.set_result(None)


class Spending:
    """The limit and what is left of it.

    Args:
        ledger: What was spent, in this run and earlier ones; calls under way count there with the most they can cost.
        max_cost: The limit, or None for none.
    """

    def __init__(self, ledger: Ledger, max_cost: Decimal | None) -> None:
        self._ledger = ledger
        self._max_cost = max_cost
        self._num_under_way = 0
        self._changed = asyncio.Event()

    async def start(
        self, *, key: str, model: str, attempt: int, most_prompt: int, most_completion: int
    ) -> CallStarted | None:
        """Set the most aside that a call can cost and write the call down; None when that would break the limit."""
        cost = self._ledger.most_cost_of(model, most_prompt, most_completion)
        while self._max_cost is not None and self._ledger.most_cost + cost > self._max_cost:
            if not self._num_under_way:
                return None
            self._changed.clear()
            await self._changed.wait()
        self._num_under_way += 1
        return self._ledger.start(
            key=key, model=model, attempt=attempt, most_prompt=most_prompt, most_completion=most_completion
        )

    def end(
        self, started: CallStarted, outcome: Outcome, usage: TokenUsage, *, is_confirmed: bool, latency_seconds: float
    ) -> None:
        """Put what a call cost in the place of what was set aside for it."""
        self._num_under_way -= 1
        self._ledger.end(started, outcome, usage, is_confirmed=is_confirmed, latency_seconds=latency_seconds)
        self._changed.set()


class MinuteAllowance:
    """A bucket of requests or of tokens; arithmetic on given times, so that it can be told in any rhythm.

    Args:
        per_minute: Most in any stretch of sixty seconds.
        now: Time in seconds.
    """

    def __init__(self, per_minute: int, now: float) -> None:
        self._capacity = max(1.0, per_minute / 60)
        self._per_second = max(per_minute - self._capacity, per_minute / 2) / 60
        self._level = self._capacity
        self._time = now

    def take(self, amount: float, now: float) -> float:
        """Take an amount, also one that isn't there yet, and say in how many seconds it will be."""
        self._level = min(self._capacity, self._level + (now - self._time) * self._per_second)
        self._time = now
        self._level -= amount
        return max(0.0, -self._level / self._per_second)

    def give_back(self, amount: float) -> None:
        """Put back what was taken too much; a negative amount takes what was too little."""
        self._level = min(self._capacity, self._level + amount)


class RateLimits:
    """The limits of a server.

    Args:
        requests_per_minute: Most requests, or None for no limit.
        tokens_per_minute: Most tokens read and written, or None for no limit.
    """

    def __init__(self, *, requests_per_minute: int | None = None, tokens_per_minute: int | None = None) -> None:
        now = time.monotonic()
        self._requests = MinuteAllowance(requests_per_minute, now) if requests_per_minute else None
        self._tokens = MinuteAllowance(tokens_per_minute, now) if tokens_per_minute else None
        self._used_share = 0.25  # of the bound on a request's tokens; bytes in four are a usual token

    async def wait(self, most_tokens: int) -> float:
        """Wait until a request may be sent.

        Args:
            most_tokens: Bound on the tokens that it will read and write.

        Returns:
            The tokens that were taken for it, to be handed to `settle`.
        """
        now = time.monotonic()
        tokens = most_tokens * self._used_share
        seconds = self._requests.take(1, now) if self._requests else 0.0
        if self._tokens:
            seconds = max(seconds, self._tokens.take(tokens, now))
        if seconds > 0:
            await asyncio.sleep(seconds)
        return tokens

    def settle(self, taken_tokens: float, *, used_tokens: int, most_tokens: int) -> None:
        """Put the guess right once the answer is there; `used_tokens` is 0 when there was none."""
        if self._tokens:
            self._tokens.give_back(taken_tokens - used_tokens)
        if used_tokens:
            self._used_share += (used_tokens / most_tokens - self._used_share) / 8


def retry_after(header: str | None) -> float | None:
    """Read how long the server wants to be left alone, in seconds: it gives a number or a date."""
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            moment = parsedate_to_datetime(header)
            zoned = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
            seconds = (zoned - datetime.now(UTC)).total_seconds()
        except (ValueError, OverflowError):  # no date, or one that no calendar has
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None
