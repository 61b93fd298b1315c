"""A server that fails in every way at once, and what then is true of every request and of the books."""

import asyncio
import json
import random
from collections import Counter
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from asking import PRICE, ask, request
from scripted_server import DROPPED, LATE, LOST, Failure

from longvideo_reason_data.errors import DataError, UsageError
from longvideo_reason_data.language_model.accounts.prices import TokenUsage
from longvideo_reason_data.language_model.accounts.response_cache import ResponseCache
from longvideo_reason_data.language_model.client import LanguageModel
from longvideo_reason_data.language_model.gates import retry_after
from longvideo_reason_data.language_model.requests import Outcome, Request

SCHEMA = {
    "type": "object",
    "required": ["answer"],
    "additionalProperties": False,
    "properties": {"answer": {"type": "string", "enum": ["A", "B"]}},
}
# What the model says to a request, by the kind in its text, and how the request has to end.
SAYINGS: dict[str, tuple[dict[str, Any], Outcome]] = {
    "good": ({"message": {"content": '{"answer": "A"}'}}, Outcome.ANSWERED),
    "fenced": ({"message": {"content": 'Well:\n```json\n{"answer": "B"}\n```'}}, Outcome.ANSWERED),
    "cut": ({"message": {"content": '{"answer": '}, "finish_reason": "length"}, Outcome.TRUNCATED),
    "no": ({"message": {"content": None, "refusal": "I can't help with that."}}, Outcome.REFUSED),
    "prose": ({"message": {"content": "It is A."}}, Outcome.INVALID),
    "shape": ({"message": {"content": '{"answer": "C"}'}}, Outcome.INVALID),
    "empty": ({"message": {"content": ""}}, Outcome.INVALID),
}
KINDS = [*["good"] * 12, *SAYINGS]


def text_of(body: dict[str, Any]) -> str:
    return body["messages"][0]["content"][0]["text"]


def say(body: dict[str, Any]) -> dict[str, Any]:
    return SAYINGS[text_of(body).split()[0]][0]


def count_tokens(body: dict[str, Any], words: str) -> tuple[int, int]:
    """Count differently for every request, within what its maker has to expect."""
    return 40 + len(json.dumps(body)) // 3, 1 + len(words) % 30


def failing(share: float, seed: int) -> Any:
    """Fail a share of all attempts, each kind alike."""

    def fail(body: dict[str, Any], times: int) -> Failure | None:
        generator = random.Random(f"{seed} {text_of(body)} {times}")
        if generator.random() > share:
            return None
        soon = format_datetime(datetime.now(UTC) + timedelta(seconds=0.2), usegmt=True)
        return generator.choice(
            [
                (429, {"retry-after": "0.05"}, b"{}"),
                (429, {"retry-after": soon}, b"{}"),
                (429, {}, b'{"error": {"message": "slow down", "code": "rate_limit_exceeded"}}'),
                (500, {}, b"oh"),
                (502, {}, b"<html>bad gateway</html>"),
                (503, {"retry-after": "0"}, b""),
                (DROPPED, {}, b""),
                (LOST, {}, b""),
                (200, {}, b'{"choices": [{"mess'),
                (200, {}, b'{"choices": []}'),
            ]
        )

    return fail


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.3, 0.6])
def test_every_request_ends_and_the_books_agree_to_the_token(server: Any, tmp_path: Path, share: float) -> None:
    server.reply, server.count_tokens, server.fail = say, count_tokens, failing(share, seed=1)
    kinds = [random.Random(number).choice(KINDS) for number in range(100)] + list(SAYINGS)
    requests = [request(f"{kind} {number}", schema=SCHEMA) for number, kind in enumerate(kinds)]
    settings = {"num_attempts": 60, "first_wait_seconds": 1e-6}
    replies, ledger = ask(server, tmp_path, *requests, price=PRICE, max_cost=Decimal(2), **settings)
    assert [reply.outcome for reply in replies] == [SAYINGS[kind][1] for kind in kinds]
    assert all((reply.value is not None) == (reply.outcome is Outcome.ANSWERED) for reply in replies)
    assert all(reply.text.strip() for reply in replies)

    assert ledger.usage.prompt_tokens == server.reported.read
    assert ledger.usage.completion_tokens == server.reported.written
    assert ledger.cost == PRICE.cost(ledger.usage) > 0
    assert ledger.num_made == len(kinds)
    assert sum(ledger.num_failed.values()) == len(server.bodies) - len(kinds)
    assert set(ledger.num_failed) == {
        Outcome.RATE_LIMITED,
        Outcome.SERVER_ERROR,
        Outcome.CONNECTION,
        Outcome.INVALID,
    }
    # What the server charged for unseen is covered by what the ledger takes for possible.
    unseen = TokenUsage(prompt_tokens=server.unseen.read, completion_tokens=server.unseen.written)
    assert 0 < PRICE.cost(unseen) <= ledger.unconfirmed_cost

    calls = [json.loads(line) for line in (tmp_path / "calls.jsonl").read_text().splitlines()]
    started, ended = (([call for call in calls if call["event"] == event]) for event in ("started", "ended"))
    assert len(started) == len(ended) == len(server.bodies)
    assert {call["call"] for call in started} == {call["call"] for call in ended}
    assert max(call["attempt"] for call in started) > 1
    assert all(call["latency_seconds"] > 0 for call in ended)
    assert sum(Decimal(call["cost"]) for call in ended if call["outcome"] == "answered") == ledger.cost

    num_asked = len(server.bodies)
    again, reopened = ask(server, tmp_path, *requests, price=PRICE, max_cost=Decimal(2))
    assert again == replies
    assert len(server.bodies) == num_asked
    assert (reopened.usage, reopened.cost) == (ledger.usage, ledger.cost)
    assert (reopened.num_unconfirmed, reopened.unconfirmed_cost) == (ledger.num_unconfirmed, ledger.unconfirmed_cost)


def test_an_answer_that_comes_too_late_may_have_been_charged_for(server: Any, tmp_path: Path) -> None:
    server.fail = lambda body, times: (LATE, {"seconds": "1.5"}, b"") if times == 0 else None
    (reply,), ledger = ask(server, tmp_path, request(), timeout_seconds=1.0, num_attempts=5, price=PRICE)
    assert reply.outcome is Outcome.ANSWERED
    assert ledger.num_failed[Outcome.TIMEOUT] == ledger.num_unconfirmed >= 1
    assert PRICE.cost(TokenUsage(prompt_tokens=100, completion_tokens=10)) == ledger.cost < ledger.unconfirmed_cost


def test_refusals_are_free(server: Any, tmp_path: Path) -> None:
    server.fail = lambda body, times: [(429, {}, b"{}"), (500, {}, b"{}"), (503, {}, b"{}"), None][times]
    _, ledger = ask(server, tmp_path, request(), price=PRICE)
    assert (ledger.num_unconfirmed, ledger.unconfirmed_cost) == (0, 0)


def test_retry_after_reads_dates_to_come() -> None:
    wait = retry_after(format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True))
    assert wait is not None
    assert 80 < wait <= 90


def test_a_server_that_wants_to_be_left_alone_for_long_is(server: Any, tmp_path: Path) -> None:
    server.fail = lambda body, times: (429, {"retry-after": "7200"}, b"{}")
    (reply,), _ = ask(server, tmp_path, request())
    assert reply.outcome is Outcome.RATE_LIMITED
    assert len(server.bodies) == 1


@pytest.mark.parametrize("failure", [(500, {}, b""), (429, {}, b""), (DROPPED, {}, b"")], ids=str)
def test_a_server_that_fails_one_request_after_the_other_ends_the_build(
    server: Any, tmp_path: Path, failure: Failure
) -> None:
    server.fail = lambda body, times: failure
    with pytest.raises(DataError, match=r"\d+ requests one after the other.*run again to go on"):
        ask(server, tmp_path, *(request(str(number)) for number in range(20)), num_attempts=2)


def test_a_server_that_is_gone_ends_the_build(server: Any, tmp_path: Path) -> None:
    async def run() -> None:
        with ResponseCache(tmp_path / "responses.jsonl") as cache:
            async with LanguageModel(server.base_url, cache, num_attempts=2, first_wait_seconds=0.01) as client:
                await client.ask(request("one"))
                await asyncio.to_thread(server.close)
                with pytest.raises(DataError, match=r"stopped answering.*run again to go on"):
                    await client.ask(request("two"))

    asyncio.run(run())
    server.__init__()


@pytest.mark.parametrize(
    ("status", "payload"),
    [(402, b"{}"), (429, b'{"error": {"message": "You exceeded", "code": "insufficient_quota"}}')],
)
def test_an_account_without_credit_ends_the_build(server: Any, tmp_path: Path, status: int, payload: bytes) -> None:
    server.fail = lambda body, times: (status, {}, payload)
    with pytest.raises(DataError, match="no credit left"):
        ask(server, tmp_path, request())
    assert len(server.bodies) == 1


def test_a_server_without_schemas_is_told_in_words(server: Any, tmp_path: Path) -> None:
    server.fail = lambda body, times: (400, {}, b"{}") if "response_format" in body else None
    server.reply = lambda body: '{"answer": "A"}'
    (reply,), _ = ask(server, tmp_path, request(schema=SCHEMA))
    assert reply.value == {"answer": "A"}
    with_schema, _, in_words = server.bodies
    assert [part["text"] for part in with_schema["messages"][0]["content"]] == ["hello"]
    assert json.dumps(SCHEMA) in in_words["messages"][0]["content"][-1]["text"]


def test_a_server_with_another_name_for_the_longest_answer(server: Any, tmp_path: Path) -> None:
    wrong = json.dumps({"error": {"message": "Use 'max_completion_tokens' instead.", "param": "max_tokens"}}).encode()
    server.fail = lambda body, times: (400, {}, wrong) if "max_tokens" in body else None
    server.reply = lambda body: '{"answer": "A"}'
    (reply,), _ = ask(server, tmp_path, request(schema=SCHEMA, max_tokens=77))
    assert reply.outcome is Outcome.ANSWERED
    assert server.bodies[1]["max_completion_tokens"] == 77
    assert "response_format" in server.bodies[1]


@pytest.mark.parametrize(
    ("key", "words"), [("", "is empty"), (" \n", "is empty"), ("sk-secret\n", "a line break"), ("sk-sécret", "no key")]
)
def test_a_key_that_is_none_is_one_clear_line(
    server: Any, tmp_path: Path, key: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(UsageError, match=words) as raised:
        ask(server, tmp_path, request())
    assert "\n" not in str(raised.value)
    assert "cret" not in str(raised.value)
    assert server.bodies == []


def test_a_password_in_the_address_is_not_repeated(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds a password") as raised:
        ask(None, tmp_path, request(), base_url="http://user:hidden@127.0.0.1:9/v1")
    assert "hidden" not in str(raised.value)


def test_an_answer_under_way_is_kept_though_nobody_waits_for_it(server: Any, tmp_path: Path) -> None:
    server.delay_seconds = 0.5

    async def run() -> None:
        with ResponseCache(tmp_path / "responses.jsonl") as cache:
            async with LanguageModel(server.base_url, cache) as client:
                asked = asyncio.create_task(client.ask(request()))
                while not server.num_parallel:
                    await asyncio.sleep(0.01)
                asked.cancel()
            assert request().key in cache

    asyncio.run(run())
    (reply,), ledger = ask(server, tmp_path, request())
    assert (reply.outcome, ledger.num_cached) == (Outcome.ANSWERED, 1)
    assert Counter(server.answered).most_common(1)[0][1] == 1


def test_pictures_and_samples_are_told_apart(server: Any, tmp_path: Path) -> None:
    samples = [Request(model="model", parts=("hello",), temperature=1.0, sample_index=index) for index in range(3)]
    ask(server, tmp_path, *samples)
    assert sorted(body.get("seed", 0) for body in server.bodies) == [0, 1, 2]
