"""How many requests are under way at a time, found by trying: additive increase, multiplicative decrease.

As in TCP's congestion avoidance (Chiu and Jain, 1989): every answer widens the limit a little, until the most that the
user allows, and a sign of overload (a refusal for haste, a time-out) halves it. Requests that were sent before the last
halving don't halve it again: they tell nothing new. The limit begins at the most, so that a server which can take it
is busy from the start.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass


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
