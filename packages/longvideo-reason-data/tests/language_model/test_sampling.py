"""How answers are drawn is for us to say, not for the checkpoint; what a server doesn't take is left out and told."""

import json
from pathlib import Path
from typing import Any

import pytest
from asking import PRICE, ask, request
from scripted_server import ScriptedServer

from longvideo_reason_data.language_model.accounts.response_cache import ResponseCache
from longvideo_reason_data.language_model.adaptation import NEUTRAL_SAMPLING
from longvideo_reason_data.language_model.requests import Outcome

NAMES = set(NEUTRAL_SAMPLING)
UNKNOWN_TO_OPENAI = {"top_k", "min_p", "repetition_penalty"}


def error(message: str, **fields: Any) -> bytes:
    return json.dumps({"error": {"message": message, "type": "invalid_request_error", **fields}}).encode()


def sent(body: dict[str, Any]) -> set[str]:
    return NAMES & body.keys()


def refusing(names: set[str], payload: bytes, status: int = 400) -> Any:
    return lambda body, times: (status, {}, payload) if names & body.keys() else None


def test_neutral_values_are_sent_with_every_request(server: ScriptedServer, tmp_path: Path) -> None:
    ask(server, tmp_path, request("one"), request("two", temperature=1.0, sample_index=3, schema={"type": "object"}))
    for body in server.bodies:
        assert {name: body[name] for name in NAMES} == {
            "top_p": 1,
            "top_k": -1,
            "min_p": 0,
            "repetition_penalty": 1,
        }
    with ResponseCache(tmp_path / "responses.jsonl") as cache:
        counts = {"top_p=1": 2, "top_k=-1": 2, "min_p=0": 2, "repetition_penalty=1": 2}
        assert cache.sampling() == {"model": dict(sorted(counts.items()))}
        assert cache.adaptations() == {}


EXTRA = [
    {"type": "extra_forbidden", "loc": ["body", name], "msg": "Extra inputs are not permitted"}
    for name in sorted(UNKNOWN_TO_OPENAI)
]
# Who says it, what isn't taken, and with which words that is said.
REFUSALS = [
    ("openai", UNKNOWN_TO_OPENAI, error("Unrecognized request arguments supplied: min_p, repetition_penalty, top_k")),
    ("openai, of one", {"top_k"}, error("Unrecognized request argument supplied: top_k", param=None, code=None)),
    ("openai, reasoning", {"top_p"}, error("Unsupported parameter: 'top_p' is not supported with this model.",
     param="top_p", code="unsupported_parameter")),
    ("fastapi", UNKNOWN_TO_OPENAI, json.dumps({"detail": EXTRA}).encode()),
    ("google", {"top_k"}, b'[{"error": {"code": 400, "message": "Invalid JSON payload received. Unknown name '
     b'\\"top_k\\": Cannot find field.", "status": "INVALID_ARGUMENT"}}]'),
    ("anthropic", {"top_p"}, error("`temperature` and `top_p` cannot both be specified for this model.")),
    ("dashscope", {"top_k"}, error("Range of top_k should be [0, 100]")),
    ("zhipu", {"top_p"}, error("top_p must be greater than 0 and less than 1")),
    ("wordless", NAMES, b"{}"),
    ("vague", NAMES, error("Unknown parameter in the request")),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("who", "names", "payload"), REFUSALS, ids=[who for who, *_ in REFUSALS])
def test_what_a_server_does_not_take_costs_one_request_in_all(
    server: ScriptedServer, tmp_path: Path, who: str, names: set[str], payload: bytes
) -> None:
    server.fail = refusing(names, payload, status=422 if who == "fastapi" else 400)
    asked = [request(str(number), temperature=0.7, sample_index=1) for number in range(6)]
    replies, ledger = ask(server, tmp_path, *asked, num_parallel=1, price=PRICE)
    assert {reply.outcome for reply in replies} == {Outcome.ANSWERED}
    assert [sent(body) for body in server.bodies] == [NAMES, *[NAMES - names] * 6]
    assert all({"temperature", "seed", "max_tokens"} <= body.keys() for body in server.bodies)
    assert ledger.num_failed == {Outcome.REJECTED: 1}
    with ResponseCache(tmp_path / "responses.jsonl") as cache:
        assert cache.adaptations() == {"model": dict.fromkeys(sorted(f"without {name}" for name in names), 6)}
        told = {name.partition("=")[0] for name in cache.sampling()["model"]}
        assert told == (NAMES - names or {"the server's own"})


def test_one_name_after_the_other_is_learnt(server: ScriptedServer, tmp_path: Path) -> None:
    def fail(body: dict[str, Any], times: int) -> Any:
        name = next((name for name in sorted(NAMES) if name in body), None)
        return (400, {}, error(f"unknown field {name!r}")) if name else None

    server.fail = fail
    replies, ledger = ask(server, tmp_path, *(request(str(number)) for number in range(6)), num_parallel=1)
    assert {reply.outcome for reply in replies} == {Outcome.ANSWERED}
    assert ledger.num_failed == {Outcome.REJECTED: len(NAMES)}


def test_a_server_that_takes_them_is_not_asked_without(server: ScriptedServer, tmp_path: Path) -> None:
    """What it rejects later without a word it rejects for another reason, and once."""
    server.fail = lambda body, times: (400, {}, b"") if "bad" in json.dumps(body) else None
    replies, _ = ask(server, tmp_path, request("good"), request("bad"), request("fine"), num_parallel=1)
    assert [reply.outcome for reply in replies] == [Outcome.ANSWERED, Outcome.REJECTED, Outcome.ANSWERED]
    assert [sent(body) for body in server.bodies] == [NAMES] * 3


# What this package wrote before it sent anything about sampling.
EARLIER_RESPONSE = (
    '{"key":"3fc6965d7249fb21ab8d449c102be0aa464f2018da4dff0542a92339ea0a0585","model":"model","text":"paid before",'
    '"finish":"stop","prompt_tokens":100,"completion_tokens":10,"cached_prompt_tokens":0,"reasoning_tokens":0,'
    '"call":"1-3fc6965d7249","form":" without pictures","adapted":[]}\n'
)
EARLIER_CALLS = (
    '{"event":"started","call":"1-3fc6965d7249","key":"3fc6965d7249fb21ab8d449c102be0aa464f2018da4dff0542a92339ea0a0585"'
    ',"model":"model","attempt":1,"most_prompt_tokens":1029,"most_completion_tokens":512,"price":{"prompt":"0.7",'
    '"completion":"2.9","cached_prompt":null},"time":1795951986.13}\n'
    '{"event":"ended","call":"1-3fc6965d7249","outcome":"answered","usage":{"prompt_tokens":100,'
    '"cached_prompt_tokens":0,"completion_tokens":10,"reasoning_tokens":0},"is_confirmed":true,"cost":"0.000099",'
    '"latency_seconds":0.0081}\n'
)


def test_an_answer_that_was_paid_for_before_is_not_asked_for_again(server: ScriptedServer, tmp_path: Path) -> None:
    (tmp_path / "responses.jsonl").write_text(EARLIER_RESPONSE)
    (tmp_path / "calls.jsonl").write_text(EARLIER_CALLS)
    replies, ledger = ask(
        server, tmp_path, request("hello", temperature=1.0, sample_index=1), request("new"), price=PRICE
    )
    assert replies[0].text == "paid before"
    assert (ledger.num_cached, ledger.num_made, len(server.bodies)) == (1, 1, 1)
    assert ledger.usage.prompt_tokens == 200
    with ResponseCache(tmp_path / "responses.jsonl") as cache:
        assert cache.sampling()["model"]["the server's own"] == 1
        assert cache.sampling()["model"]["top_k=-1"] == 1
