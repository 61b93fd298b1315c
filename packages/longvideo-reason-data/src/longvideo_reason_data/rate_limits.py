"""Keeping below a server's requests and tokens per minute instead of running into its refusals.

Both are leaky buckets (the generic cell rate algorithm): what is asked for is taken at once, and the answer is how long
to wait until it was there. A bucket holds a second's worth and refills so that no stretch of sixty seconds ever sees
more than the limit. What a request's tokens will be isn't known before the answer; they are guessed from earlier
answers and put right afterwards, so the token limit is kept on average. The cost limit doesn't rest on this guess.
"""

import asyncio
import time


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
