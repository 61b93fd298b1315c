"""The client against a real server that fails in every way it knows."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from asking import ask, request

from longvideo_reason_data.errors import DataError, UsageError
from longvideo_reason_data.language_model.accounts.response_cache import ResponseCache
from longvideo_reason_data.language_model.gates import retry_after
from longvideo_reason_data.language_model.requests import Outcome, Picture, Request
from longvideo_reason_data.language_model.structured_output import extract_json

JSON_SCHEMA = {"type": "object"}


def test_an_answer_is_paid_for_once(server: Any, tmp_path: Path) -> None:
    server.reply = lambda body: "fine"
    (first,), ledger = ask(server, tmp_path, request())
    assert (first.outcome, first.text) == (Outcome.ANSWERED, "fine")
    assert (ledger.num_made, ledger.num_cached) == (1, 0)
    (second,), ledger = ask(server, tmp_path, request())
    assert second == first
    assert (ledger.num_made, ledger.num_cached) == (0, 1)
    assert len(server.bodies) == 1


def test_cached_answers_need_no_server(server: Any, tmp_path: Path) -> None:
    ask(server, tmp_path, request())
    server.close()
    (reply,), _ = ask(server, tmp_path, request())
    assert reply.outcome is Outcome.ANSWERED
    server.__init__()


def test_equal_requests_at_one_time_are_sent_once(server: Any, tmp_path: Path) -> None:
    server.delay_seconds = 0.1
    replies, ledger = ask(server, tmp_path, *[request()] * 5)
    assert len(set(replies)) == 1
    assert ledger.num_made == len(server.bodies) == 1
    assert ledger.num_cached == 4


@pytest.mark.parametrize(
    "change",
    [
        {"text": "other"},
        {"model": "seer"},
        {"max_tokens": 5},
        {"temperature": 0.5},
        {"schema": JSON_SCHEMA},
        {"sample_index": 1},
        {"prompt_digest": "x"},
        {"system": "x"},
    ],
)
def test_everything_that_matters_is_in_the_key(change: dict[str, Any]) -> None:
    base = {"model": "model", "text": "hello"}
    changed = {**base, **change}
    keys = {Request(parts=(values.pop("text"),), **values).key for values in (base, changed)}
    assert len(keys) == 2


def test_pictures_are_sent_and_keyed_by_identity(server: Any, tmp_path: Path) -> None:
    def loaded() -> bytes:
        return b"\xff\xd8jpeg"

    shown = Request(model="model", parts=(Picture(identity="one", load=loaded), "what is it?"))
    other = Request(model="model", parts=(Picture(identity="two", load=loaded), "what is it?"))
    assert shown.key != other.key
    ask(server, tmp_path, shown)
    picture, text = server.bodies[0]["messages"][0]["content"]
    assert picture["image_url"]["url"] == "data:image/jpeg;base64,/9hqcGVn"
    assert text == {"type": "text", "text": "what is it?"}

    def never() -> bytes:
        raise AssertionError("decoded again for an answer that is in the journal")

    (reply,), _ = ask(
        server, tmp_path, Request(model="model", parts=(Picture(identity="one", load=never), "what is it?"))
    )
    assert reply.outcome is Outcome.ANSWERED


def test_a_damaged_picture_concerns_its_item_only(server: Any, tmp_path: Path) -> None:
    def damaged() -> bytes:
        raise DataError("frame 3 can't be decoded")

    broken = Request(model="model", parts=(Picture(identity="one", load=damaged),))
    (first, second), _ = ask(server, tmp_path, broken, request())
    assert (first.outcome, second.outcome) == (Outcome.DAMAGED_INPUT, Outcome.ANSWERED)
    assert "frame 3" in first.text


PASSING_FAILURES = [
    (429, {"retry-after": "0"}, b"{}", Outcome.RATE_LIMITED),
    (429, {}, b"{}", Outcome.RATE_LIMITED),
    (500, {}, b"{}", Outcome.SERVER_ERROR),
    (503, {}, b"<html>busy</html>", Outcome.SERVER_ERROR),
    (0, {}, b"", Outcome.CONNECTION),
    (200, {}, b"{not json", Outcome.INVALID),
    (200, {}, b'{"choices": []}', Outcome.INVALID),
    (200, {}, b'"text"', Outcome.INVALID),
    (200, {"content-type": "text/html"}, b"<html></html>", Outcome.INVALID),
]


@pytest.mark.parametrize("failure", PASSING_FAILURES, ids=str)
def test_a_failure_that_passes_is_tried_again(server: Any, tmp_path: Path, failure: Any) -> None:
    server.fail = lambda body, times: failure[:3] if times < 2 else None
    server.reply = lambda body: "at last"
    (reply,), ledger = ask(server, tmp_path, request())
    assert (reply.outcome, reply.text) == (Outcome.ANSWERED, "at last")
    assert ledger.num_made == 1
    assert ledger.num_failed == {failure[3]: 2}
    assert len(server.bodies) == 3


@pytest.mark.slow
@pytest.mark.parametrize("failure", [f for f in PASSING_FAILURES if f[0] != 0], ids=str)
def test_a_failure_that_stays_is_a_typed_outcome_and_is_asked_again_next_time(
    server: Any, tmp_path: Path, failure: Any
) -> None:
    server.fail = lambda body, times: failure[:3]
    (reply,), ledger = ask(server, tmp_path, request(), num_attempts=3)
    assert reply.outcome is failure[3]
    assert reply.text
    assert "\n" not in reply.text
    assert (ledger.num_made, len(server.bodies)) == (0, 3)
    server.fail = lambda body, times: None
    (reply,), ledger = ask(server, tmp_path, request())
    assert (reply.outcome, ledger.num_made) == (Outcome.ANSWERED, 1)


def test_the_servers_wish_to_be_left_alone_is_kept(server: Any, tmp_path: Path) -> None:
    server.fail = lambda body, times: (429, {"retry-after": "1"}, b"{}") if times == 0 else None
    start = time.perf_counter()
    ask(server, tmp_path, request())
    assert 1.0 <= time.perf_counter() - start < 5.0


def test_retry_after_reads_seconds_and_dates() -> None:
    assert retry_after("2.5") == 2.5
    assert retry_after("-1") == 0
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert retry_after("Wed, 21 Oct 2015 07:28:00 -0000") == 0
    assert retry_after("soon") is None
    assert retry_after("nan") is None
    assert retry_after(None) is None


def test_a_slow_server_is_a_timeout(server: Any, tmp_path: Path) -> None:
    server.delay_seconds = 1.0
    (reply,), ledger = ask(server, tmp_path, request(), timeout_seconds=0.1, num_attempts=2)
    assert reply.outcome is Outcome.TIMEOUT
    assert ledger.num_failed == {Outcome.TIMEOUT: 2}


@pytest.mark.parametrize(
    ("message", "outcome"),
    [
        ({"finish_reason": "length", "message": {"content": "half of"}}, Outcome.TRUNCATED),
        ({"finish_reason": "stop", "message": {"content": None, "refusal": "no"}}, Outcome.REFUSED),
        ({"finish_reason": "content_filter", "message": {"content": ""}}, Outcome.REFUSED),
        ({"finish_reason": "stop", "message": {"content": " "}}, Outcome.INVALID),
    ],
)
def test_paid_answers_of_no_use_are_typed_and_kept(
    server: Any, tmp_path: Path, message: dict[str, Any], outcome: Outcome
) -> None:
    server.reply = lambda body: message
    for made in (1, 0):
        (reply,), ledger = ask(server, tmp_path, request())
        assert reply.outcome is outcome
        assert ledger.num_made == made


def test_a_request_that_the_server_calls_wrong_is_not_repeated(server: Any, tmp_path: Path) -> None:
    server.fail = lambda body, times: (400, {}, b'{"error": {"message": "too long"}}')
    (reply,), _ = ask(server, tmp_path, request())
    assert reply.outcome is Outcome.REJECTED
    assert "too long" in reply.text
    assert len(server.bodies) == 1


def test_a_server_without_schemas_gets_the_prompt_only(server: Any, tmp_path: Path) -> None:
    server.fail = lambda body, times: (400, {}, b"{}") if "response_format" in body else None
    ask(server, tmp_path, request(schema=JSON_SCHEMA))
    assert server.bodies[0]["response_format"]["json_schema"]["schema"] == JSON_SCHEMA
    assert ["response_format" in body for body in server.bodies] == [True, True, False]
    assert ["top_k" in body for body in server.bodies] == [True, False, True]  # it wasn't that, and is sent again
    server.delay_seconds = 0.05  # so that all of them are under way before the first is refused
    replies, _ = ask(server, tmp_path, *(request(str(number), schema=JSON_SCHEMA) for number in range(8)))
    assert {reply.outcome for reply in replies} == {Outcome.ANSWERED}


@pytest.mark.parametrize(
    ("status", "words"), [(401, "refuses the key"), (403, "refuses the key"), (404, "doesn't serve")]
)
def test_what_concerns_every_request_ends_the_build(
    server: Any, tmp_path: Path, status: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret-key")
    server.fail = lambda body, times: (status, {}, b'{"error": {"message": "wrong: secret-key"}}')
    with pytest.raises(DataError, match=words) as raised:
        ask(server, tmp_path, request())
    assert "\n" not in str(raised.value)
    assert "secret-key" not in (tmp_path / "responses.jsonl").read_text()


def test_a_model_that_is_not_served_is_found_before_anything_is_sent(server: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="doesn't serve 'nobody'; it serves model, seer"):
        ask(server, tmp_path, Request(model="nobody", parts=("x",)))
    assert server.bodies == []
    server.served = None
    (reply,), _ = ask(server, tmp_path, request())
    assert reply.outcome is Outcome.ANSWERED


@pytest.mark.parametrize("base_url", ["http://127.0.0.1:9/v1", "http://no-such-host.invalid/v1", "nonsense", ""])
def test_no_server_is_one_clear_line(tmp_path: Path, base_url: str) -> None:
    with pytest.raises(DataError, match="base-url") as raised:
        ask(None, tmp_path, request(), base_url=base_url or " ")
    assert "\n" not in str(raised.value)


def test_no_more_requests_at_a_time_than_allowed(server: Any, tmp_path: Path) -> None:
    server.delay_seconds = 0.1
    ask(server, tmp_path, *(request(str(number)) for number in range(12)), num_parallel=4)
    assert 2 <= server.most_parallel <= 4


# The journal.


def test_a_line_cut_off_by_a_kill_is_dropped_and_the_rest_kept(server: Any, tmp_path: Path) -> None:
    ask(server, tmp_path, request("one"), request("two"))
    path = tmp_path / "responses.jsonl"
    path.write_bytes(path.read_bytes()[:-7])
    _, ledger = ask(server, tmp_path, request("one"), request("two"))
    assert (ledger.num_made, ledger.num_cached) == (1, 1)
    assert len(path.read_text().splitlines()) == 2
    assert all(json.loads(line)["finish"] == "stop" for line in path.read_text().splitlines())


def test_a_damaged_journal_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "responses.jsonl").write_text("{}\n")
    with pytest.raises(DataError, match="line 1 is damaged"), ResponseCache(tmp_path / "responses.jsonl"):
        pass


def test_two_builds_cannot_share_a_journal(tmp_path: Path) -> None:
    path = tmp_path / "responses.jsonl"
    with ResponseCache(path), pytest.raises(UsageError, match="another build"), ResponseCache(path):
        pass
    with ResponseCache(path) as again:
        assert len(again) == 0


# Finding JSON.


@pytest.mark.parametrize(
    "text",
    [
        '{"a": {"b": "}"}}',
        'Here it is:\n```json\n{"a": {"b": "}"}}\n```\nGood luck!',
        '<think>maybe {"a": 1}</think>{"a": {"b": "}"}}',
        'a set {x} and then {"a": {"b": "}"}} and {"c": 1}',
        '{"small": 1} {"a": {"b": "}"}}',
    ],
)
def test_json_is_found_among_words(text: str) -> None:
    assert extract_json(text) == {"a": {"b": "}"}}


@pytest.mark.parametrize("text", ["", "no", "[1, 2]", '{"cut": "off', "{" * 100_000, '{"a":' * 50_000, "{{{}"[:-1]])
def test_no_json_is_an_error_and_cheap(text: str) -> None:
    start = time.process_time()
    with pytest.raises(ValueError, match="no JSON object"):
        extract_json(text)
    assert time.process_time() - start < 2
