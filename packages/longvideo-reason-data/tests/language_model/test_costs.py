"""The limit on the cost, held against the server's own books."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from asking import PRICE, ask, request
from scripted_server import DROPPED, LOST, ScriptedServer

from longvideo_reason_data.cli import main
from longvideo_reason_data.errors import DataError, UsageError
from longvideo_reason_data.generation.settings import BuildSettings
from longvideo_reason_data.language_model.accounts.ledger import Ledger
from longvideo_reason_data.language_model.accounts.prices import TokenPrice, TokenUsage
from longvideo_reason_data.language_model.requests import Outcome, Picture, Request
from longvideo_reason_data.pipeline.build import build


def charged(server: ScriptedServer) -> Decimal:
    """What the server charged for, seen by the client or not."""
    return PRICE.cost(
        TokenUsage(
            prompt_tokens=server.reported.read + server.unseen.read,
            completion_tokens=server.reported.written + server.unseen.written,
        )
    )


def dear(body: dict[str, Any], words: str) -> tuple[int, int]:
    """Count much, up to the most that the client allowed."""
    number = random.Random(json.dumps(body)).random()
    return 300 + int(700 * number), int(body["max_tokens"] * number**0.3)


@pytest.mark.parametrize("seed", [1, 2])
def test_the_limit_is_never_broken_however_many_are_under_way(server: Any, tmp_path: Path, seed: int) -> None:
    def fail(body: dict[str, Any], times: int) -> Any:
        generator = random.Random(f"{seed} {body['messages']} {times}")
        faults = [(429, {}, b"{}"), (500, {}, b"{}"), (DROPPED, {}, b""), (LOST, {}, b"")]
        return generator.choice(faults) if generator.random() < 0.3 else None

    server.fail, server.count_tokens, server.delay_seconds = fail, dear, 0.01
    requests = [request(f"{number}") for number in range(60)]
    limit = Decimal("0.05")  # about half of what all would cost
    replies, ledger = ask(
        server, tmp_path, *requests, price=PRICE, max_cost=limit, num_attempts=20, first_wait_seconds=1e-6
    )
    outcomes = Counter(reply.outcome for reply in replies)
    assert set(outcomes) == {Outcome.ANSWERED, Outcome.OVER_BUDGET}
    assert 0 < charged(server) <= ledger.most_cost <= limit
    # It is also used: what is left doesn't suffice for another request at its dearest.
    assert limit - ledger.most_cost < PRICE.most_cost(requests[0].most_prompt_tokens(0) + 2, 512)
    assert all("--max-cost 0.05" in reply.text for reply in replies if reply.outcome is Outcome.OVER_BUDGET)

    # A second run has no purse of its own: with the same limit nothing more is sent.
    num_asked = len(server.bodies)
    ask(server, tmp_path, *requests, price=PRICE, max_cost=limit, num_attempts=20, first_wait_seconds=1e-6)
    assert len(server.bodies) == num_asked
    replies, ledger = ask(
        server, tmp_path, *requests, price=PRICE, max_cost=Decimal(1), num_attempts=20, first_wait_seconds=1e-6
    )
    assert {reply.outcome for reply in replies} == {Outcome.ANSWERED}
    assert charged(server) <= ledger.most_cost <= 1
    assert max(Counter(server.answered).values()) == 1


def test_a_request_waits_for_others_to_end_cheaper_than_they_might_have(server: Any, tmp_path: Path) -> None:
    one = PRICE.most_cost(request("00").most_prompt_tokens(0), 512)
    limit = one + 19 * PRICE.cost(TokenUsage(prompt_tokens=100, completion_tokens=10))
    replies, _ = ask(server, tmp_path, *(request(f"{n:02}") for n in range(20)), price=PRICE, max_cost=limit)
    assert {reply.outcome for reply in replies} == {Outcome.ANSWERED}
    replies, _ = ask(server, tmp_path, request("20"), request("21"), price=PRICE, max_cost=limit)
    assert {reply.outcome for reply in replies} == {Outcome.OVER_BUDGET}


def test_a_limit_without_prices_is_one_clear_line(server: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="prices of 'model' aren't known; give --prompt-price"):
        ask(server, tmp_path, request(), max_cost=Decimal(20))
    assert server.bodies == []
    free = TokenPrice(prompt=Decimal(0), completion=Decimal(0))
    (reply,), ledger = ask(server, tmp_path, request(), max_cost=Decimal(0), price=free)
    assert (reply.outcome, ledger.cost) == (Outcome.ANSWERED, 0)


def test_a_server_that_counts_more_than_can_be_is_stopped(server: Any, tmp_path: Path) -> None:
    shown = Request(model="model", parts=(Picture(identity="one", load=lambda: b"jpeg"), "what is it?"))
    server.count_tokens = lambda body, words: (5000, 10)
    with pytest.raises(DataError, match=r"counts 5000 tokens.*--picture-tokens more than 1000"):
        ask(server, tmp_path, shown, price=PRICE, max_cost=Decimal(1), picture_tokens=1000)
    (reply,), ledger = ask(server, tmp_path, shown, price=PRICE, max_cost=Decimal(1))
    assert (reply.outcome, ledger.num_cached) == (Outcome.ANSWERED, 1)
    assert ledger.usage.prompt_tokens == 5000


def test_tokens_that_the_server_had_at_hand_have_their_own_price() -> None:
    usage = TokenUsage(prompt_tokens=1000, cached_prompt_tokens=400, completion_tokens=10, reasoning_tokens=4)
    price = TokenPrice(prompt=Decimal(3), completion=Decimal(15), cached_prompt=Decimal("0.3"))
    assert price.cost(usage) == Decimal("0.00207")
    assert price.cost(usage) <= price.most_cost(1000, 10) == Decimal("0.00315")
    assert price.model_copy(update={"cached_prompt": None}).cost(usage) == Decimal("0.00315")


CLIENT = """
import sys
from decimal import Decimal
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from asking import PRICE, ask, request
requests = [request(str(number)) for number in range(40)]
ask(None, Path(sys.argv[2]), *requests, base_url=sys.argv[3], price=PRICE, max_cost=Decimal("0.5"), num_parallel=4)
"""


@pytest.mark.slow
def test_a_killed_client_asks_nothing_twice_and_keeps_the_limit(server: Any, tmp_path: Path) -> None:
    server.delay_seconds, server.count_tokens = 0.05, dear
    command = [sys.executable, "-c", CLIENT, str(Path(__file__).parents[1]), str(tmp_path), server.base_url]
    num_kills = 0
    for wanted in (7, 15, 26):
        process = subprocess.Popen(command, stderr=subprocess.PIPE)
        while process.poll() is None and len(server.answered) < wanted:
            time.sleep(0.002)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            num_kills += 1
        _, errors = process.communicate()
        assert process.returncode == -signal.SIGKILL, errors.decode()
        while server.num_parallel:  # what the client didn't live to see is charged for all the same
            time.sleep(0.01)
    requests = [request(str(number)) for number in range(40)]
    replies, ledger = ask(server, tmp_path, *requests, price=PRICE, max_cost=Decimal("0.5"), num_parallel=4)
    assert {reply.outcome for reply in replies} == {Outcome.ANSWERED}
    # Only what was under way at a kill, four at most, can have been answered without the client's knowing.
    repeated = sum(count - 1 for count in Counter(server.answered).values())
    assert repeated <= ledger.num_unconfirmed <= 4 * num_kills
    assert PRICE.cost(ledger.usage) == ledger.cost <= charged(server) <= ledger.most_cost <= Decimal("0.5")
    responses = [json.loads(line) for line in (tmp_path / "responses.jsonl").read_text().splitlines()]
    assert len({response["key"] for response in responses}) == len(responses) == 40
    assert sum(response["prompt_tokens"] for response in responses) == ledger.usage.prompt_tokens


def test_a_call_that_was_under_way_counts_when_its_model_is_named_no_more(server: Any, tmp_path: Path) -> None:
    dear_price = TokenPrice(prompt=Decimal(7), completion=Decimal(29))
    with Ledger(path=tmp_path / "calls.jsonl", prices={"captioner": dear_price}) as ledger:
        ledger.start(key="0" * 64, model="captioner", attempt=1, most_prompt=9000, most_completion=1000)
    under_way = dear_price.most_cost(9000, 1000)
    one = PRICE.most_cost(request().most_prompt_tokens(0), 512)
    (reply,), ledger = ask(server, tmp_path, request(), price=PRICE, max_cost=under_way + one / 2)
    assert (reply.outcome, ledger.most_cost, server.bodies) == (Outcome.OVER_BUDGET, under_way, [])
    (reply,), ledger = ask(server, tmp_path, request(), price=PRICE, max_cost=under_way + one)
    assert reply.outcome is Outcome.ANSWERED
    assert ledger.unconfirmed_cost == under_way


def test_a_call_made_without_a_price_counts_at_the_dearest_that_is_known(tmp_path: Path) -> None:
    with Ledger(path=tmp_path / "calls.jsonl") as ledger:
        for number in range(2):
            started = ledger.start(key="0" * 64, model="x", attempt=1, most_prompt=9000, most_completion=1000)
            if number:
                usage = TokenUsage(prompt_tokens=1000, completion_tokens=10)
                ledger.end(started, Outcome.ANSWERED, usage, is_confirmed=True, latency_seconds=1)
        assert ledger.most_cost == 0
    prices = {"a": TokenPrice(prompt=Decimal(3), completion=Decimal(5)), "b": PRICE}
    with Ledger(path=tmp_path / "calls.jsonl", prices=prices) as ledger:
        assert ledger.unconfirmed_cost == Decimal("0.032")
        assert ledger.cost == Decimal("0.00305")


def test_a_build_stops_at_its_limit_and_goes_on_with_a_higher_one(
    server: Any, make_video: Callable[..., Path], tmp_path: Path
) -> None:
    for number in range(3):
        make_video(f"films/film {number}.mp4", num_frames=50, first_number=100 * number)

    def run(name: str, max_cost: float | None) -> dict[str, Any]:
        settings = BuildSettings(
            window_seconds=1.0, prompt_price=10.0, completion_price=100.0, max_cost=max_cost, picture_tokens=100
        )
        return build([tmp_path / "films"], tmp_path / name, base_url=server.base_url, model="model", settings=settings)

    whole = run("whole", None)
    assert (whole["cost"], whole["cost_unconfirmed"]) == (pytest.approx(30 * 0.002), 0)
    server.answered.clear()
    stopped = run("limited", 0.049)
    assert 1 <= len(server.answered) < 6
    assert stopped["cost"] == pytest.approx(len(server.answered) * 0.002)
    assert stopped["dropped"]["caption_over_budget"] == 6 - len(server.answered)
    assert sum(stopped["dropped"].values()) + sum(stopped["kept"].values()) == sum(stopped["input"].values())
    assert run("limited", 5.0)["dataset_hash"] == whole["dataset_hash"]
    assert max(Counter(server.answered).values()) == 1


def test_the_command_wants_prices_with_a_limit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["build", "--videos", str(tmp_path), "--output", str(tmp_path / "dataset"), "--model", "model"]
    assert main([*arguments, "--base-url", "http://127.0.0.1:9/v1", "--max-cost", "20"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    assert "--max-cost 20: the prices aren't known" in errors[0]
