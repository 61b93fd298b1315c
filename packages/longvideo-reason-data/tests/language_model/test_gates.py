"""How many requests at a time, and how many per minute: told by counting, not by the clock of a busy machine."""

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from asking import ask, request
from hypothesis import given
from hypothesis import strategies as st

from longvideo_reason_data.language_model.gates import AdaptiveConcurrency, MinuteAllowance, RateLimits
from longvideo_reason_data.language_model.requests import Outcome

PARALLEL, NUM_REQUESTS = 16, 160


class OneAnswerPerFullHouse:
    """Lets a server answer one request at a time, and only while it has as many as it can bear, until the last."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._num_arrived = self._num_released = 0
        self.was_starved = False

    def wait(self) -> None:
        with self._changed:
            self._num_arrived += 1
            mine = self._num_arrived
            self._changed.notify_all()
            in_time = self._changed.wait_for(lambda: self._is_turn_of(mine), timeout=60)
            self.was_starved |= not in_time
            self._num_released += 1
            self._changed.notify_all()

    def _is_turn_of(self, number: int) -> bool:
        is_full = self._num_arrived - self._num_released >= PARALLEL or self._num_arrived == NUM_REQUESTS
        return number == self._num_released + 1 and is_full


@pytest.mark.slow
def test_the_server_is_never_short_of_requests(server: Any, tmp_path: Path) -> None:
    # Each answer waits until sixteen requests are there. A client that sent in waves, or one after the other, or held
    # back a single slot, would wait for ever. So of a server that answers sixteen at a time all places are taken all
    # the time: 160 requests take ten times as long as one, where a sequential loop takes 160 times as long.
    house = OneAnswerPerFullHouse()
    server.wait_for_turn = house.wait
    replies, _ = ask(server, tmp_path, *(request(str(number)) for number in range(NUM_REQUESTS)), num_parallel=PARALLEL)
    assert not house.was_starved
    assert server.most_parallel == PARALLEL
    assert {reply.outcome for reply in replies} == {Outcome.ANSWERED}


@pytest.mark.slow
def test_an_overloaded_server_is_asked_less(server: Any, tmp_path: Path) -> None:
    # It bears four at a time. Sixteen are sent at first; from what is refused the client learns.
    server.delay_seconds = 0.02
    server.fail = lambda body, times: (429, {}, b"{}") if server.num_parallel > 4 else None
    replies, ledger = ask(server, tmp_path, *(request(str(number)) for number in range(120)), num_attempts=30)
    assert {reply.outcome for reply in replies} == {Outcome.ANSWERED}
    assert 12 <= ledger.num_failed[Outcome.RATE_LIMITED] <= 120, "without learning it is several for each request"


def test_the_limit_is_halved_once_for_what_was_sent_together_and_grows_by_one_a_round() -> None:
    async def run() -> None:
        gate = AdaptiveConcurrency(16)
        async with gate.slot() as first, gate.slot() as second:
            gate.overloaded(first)
            gate.overloaded(second)
            assert gate.limit == 8
        async with gate.slot() as third:
            gate.overloaded(third)
        assert gate.limit == 4
        for limit in (5, 6, 7):
            for _ in range(limit):
                gate.answered()
            assert gate.limit == limit
        for _ in range(1000):
            gate.answered()
        assert gate.limit == 16
        for _ in range(20):
            async with gate.slot() as slot:
                gate.overloaded(slot)
        assert gate.limit == 1

    asyncio.run(run())


def test_slots_are_given_in_order_and_none_gets_lost() -> None:
    async def run() -> None:
        gate = AdaptiveConcurrency(2)
        order: list[int] = []
        most = 0

        async def work(number: int) -> None:
            nonlocal most
            async with gate.slot():
                order.append(number)
                most = max(most, gate.num_running)
                await asyncio.sleep(0)

        tasks = [asyncio.create_task(work(number)) for number in range(30)]
        await asyncio.sleep(0)
        for number in (1, 5, 6, 29):
            tasks[number].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert order == sorted(order)
        assert len(order) >= 26
        assert (most, gate.num_running) == (2, 0)

    asyncio.run(run())


@given(
    per_minute=st.integers(1, 6000),
    pauses=st.lists(st.floats(0, 30), min_size=1, max_size=200),
)
def test_no_minute_sees_more_than_the_limit(per_minute: int, pauses: list[float]) -> None:
    allowance = MinuteAllowance(per_minute, 0.0)
    amount = max(1, per_minute // 40)
    now, sent = 0.0, []
    for pause in pauses:
        now += pause
        sent.append(now + allowance.take(amount, now))
    assert sent == sorted(sent)
    for start in sent:
        # A request may be larger than what the bucket holds; then only the last of the minute is beyond it.
        in_window = [moment for moment in sent if start <= moment < start + 59.999]
        assert (len(in_window) - 1) * amount <= per_minute


@pytest.mark.parametrize("per_minute", [60, 600, 6000])
def test_the_limit_is_also_used(per_minute: int) -> None:
    allowance = MinuteAllowance(per_minute, 0.0)
    waits = [allowance.take(1, 0.0) for _ in range(10 * per_minute)]
    assert per_minute * 10 / (waits[-1] / 60) >= 0.98 * per_minute


def test_tokens_are_put_right_when_the_answer_is_there() -> None:
    allowance = MinuteAllowance(6000, 0.0)
    assert allowance.take(1000, 0.0) > 0
    allowance.give_back(950)
    assert allowance.take(50, 0.0) == 0
    assert allowance.take(1, 0.0) > 0

    async def run() -> None:
        limits = RateLimits(tokens_per_minute=10**9)
        for _ in range(40):
            taken = await limits.wait(10_000)
            limits.settle(taken, used_tokens=1000, most_tokens=10_000)
        assert await limits.wait(10_000) == pytest.approx(1000, rel=0.05)

    asyncio.run(run())


def test_requests_per_minute_hold_for_the_client(server: Any, tmp_path: Path) -> None:
    start = time.perf_counter()
    ask(server, tmp_path, *(request(str(number)) for number in range(15)), requests_per_minute=600)
    assert time.perf_counter() - start >= 0.45  # ten at once, five more at nearly ten a second
