"""A limit on what a build may cost that nothing gets past.

The most that a request can cost is set aside before it is sent, and what it really cost takes that place when it ends.
What was spent, what is set aside and what may have been charged for unseen never exceed the limit together, however
many requests are under way. A request that doesn't fit waits for others to end cheaper than they might have.
"""

import asyncio
from decimal import Decimal

from longvideo_reason_data.ledger import CallStarted, Ledger
from longvideo_reason_data.model_requests import Outcome
from longvideo_reason_data.prices import TokenUsage


class Spending:
    """The limit and its purse.

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
