"""The event loop in which asynchronous rewards are awaited: one for the whole process.

What such a reward makes in one step, such as a client with its connections, is bound to the loop and used again in the
next one, so the loop must be the same.
"""

import asyncio
import atexit
from collections.abc import Awaitable
from functools import cache
from typing import TypeVar

ResultT = TypeVar("ResultT")


def wait_for(awaitable: Awaitable[ResultT]) -> ResultT:
    """The result of an awaitable; the caller waits for it."""

    async def wait() -> ResultT:
        return await awaitable

    return _runner().run(wait())


@cache
def _runner() -> asyncio.Runner:
    runner = asyncio.Runner()
    atexit.register(runner.close)
    return runner
