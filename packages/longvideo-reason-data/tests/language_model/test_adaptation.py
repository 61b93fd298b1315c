"""Servers that know less of the protocol than others, each with the errors that it sends, over real HTTP."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from asking import PRICE, ask, request
from scripted_server import ScriptedServer

from longvideo_reason_data.errors import DataError
from longvideo_reason_data.language_model.accounts.response_cache import ResponseCache
from longvideo_reason_data.language_model.failures import read_rejection
from longvideo_reason_data.language_model.requests import Outcome, Picture, Request

SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}


def error(message: str, **fields: Any) -> bytes:
    return json.dumps({"error": {"message": message, "type": "invalid_request_error", **fields}}).encode()


def shown(num_pictures: int, **changes: Any) -> Request:
    parts: list[str | Picture] = []
    for number in range(num_pictures):
        parts += [f"[{number}.0 s]", Picture(identity=f"{number}", load=lambda: b"\xff\xd8")]
    return Request(model="model", parts=(*parts, "what is it?"), **changes)


def pictures_in(body: dict[str, Any]) -> int:
    return sum(part["type"] == "image_url" for part in body["messages"][0]["content"])


def refusing(wrong: Callable[[dict[str, Any]], bool], payload: bytes, status: int = 400) -> Any:
    return lambda body, times: (status, {}, payload) if wrong(body) else None


# Who says it, what is wrong with a request, and with which words that is said.
PARAMETERS = [
    ("openai", "temperature", error("Unsupported value: 'temperature' does not support 0.7 with this model. Only the "
     "default (1) value is supported.", param="temperature", code="unsupported_value")),
    ("moonshot", "temperature", error("invalid temperature: only 1 is allowed for this model")),
    ("plain", "temperature", b'{"error": "temperature must be 1"}'),
    ("openai", "seed", error("Unsupported parameter: 'seed'", param="seed", code="unsupported_parameter")),
    ("fastapi", "seed", json.dumps({"detail": [{"type": "extra_forbidden", "loc": ["body", "seed"],
     "msg": "Extra inputs are not permitted", "input": 1}]}).encode()),
    ("mistral", "seed", json.dumps({"object": "error", "message": {"detail": [{"type": "extra_forbidden",
     "loc": ["body", "seed"], "msg": "Extra inputs are not permitted"}]}, "code": None}).encode()),
    ("go", "seed", b'{"error": "json: unknown field \\"seed\\""}'),
    ("google", "seed", b'[{"error": {"code": 400, "message": "Invalid JSON payload received. Unknown name \\"seed\\": '
     b'Cannot find field.", "status": "INVALID_ARGUMENT"}}]'),
    ("openai", "max_tokens", error("Unsupported parameter: 'max_tokens' is not supported with this model. Use "
     "'max_completion_tokens' instead.", param="max_tokens", code="unsupported_parameter")),
    ("azure", "max_tokens", error("max_tokens is not supported, use max_completion_tokens", param=None)),
    ("lm studio", "response_format", b'{"error": "\'response_format.type\' must be \'text\'"}'),
    ("deepseek", "response_format", error("This response_format type is unavailable now")),
    ("old vllm", "response_format", b'{"object": "error", "message": "response_format json_schema not supported", '
     b'"type": "BadRequestError", "param": null, "code": 400}'),
    ("openrouter", "temperature", json.dumps({"error": {"message": "Provider returned error", "code": 400, "metadata": {
     "raw": '{"error": {"message": "temperature is not supported", "param": "temperature"}}',
     "provider_name": "x"}}}).encode()),
    ("html", "seed", b"<html><body><h1>Bad request</h1>seed is no field</body></html>"),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("who", "name", "payload"), PARAMETERS, ids=lambda value: value if len(value) < 20 else "")
def test_a_parameter_that_a_server_refuses_is_left_out_once_for_all(
    server: ScriptedServer, tmp_path: Path, who: str, name: str, payload: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    server.fail = refusing(lambda body: name in body, payload, status=422 if who == "fastapi" else 400)
    server.reply = lambda body: '{"a": "b"}'
    asked = [request(str(number), schema=SCHEMA, temperature=0.7, sample_index=1) for number in range(5)]
    with caplog.at_level(logging.WARNING):
        replies, ledger = ask(server, tmp_path, *asked, num_parallel=1, price=PRICE)
    assert {reply.outcome for reply in replies} == {Outcome.ANSWERED}
    assert len(server.bodies) == 6  # one was rejected, whatever number were asked
    changed = {"temperature", "seed", "response_format", "max_tokens"}
    assert [name in body for body in server.bodies] == [True, *[False] * 5]
    assert all(changed - {name} <= body.keys() for body in server.bodies)  # nothing else is left out
    assert len(caplog.records) == 1
    assert ledger.num_failed == {Outcome.REJECTED: 1}
    assert ledger.cost == PRICE.cost(ledger.usage)
    assert (ledger.num_unconfirmed, ledger.usage.prompt_tokens) == (0, 500)
    with ResponseCache(tmp_path / "responses.jsonl") as cache:
        ((change, count),) = cache.adaptations()["model"].items()
        assert count == 5
        assert ("schema in words" if name == "response_format" else name) in change


def test_one_thing_after_the_other_is_learnt_whoever_finds_it(server: ScriptedServer, tmp_path: Path) -> None:
    def fail(body: dict[str, Any], times: int) -> Any:
        for name in ("temperature", "seed", "max_tokens"):
            if name in body:
                return 400, {}, error(f"Unsupported parameter: '{name}'", param=name, code="unsupported_parameter")
        return None

    server.fail, server.delay_seconds = fail, 0.05
    asked = [request(str(number), sample_index=number % 2) for number in range(12)]
    replies, ledger = ask(server, tmp_path, *asked, num_parallel=4)
    assert {reply.outcome for reply in replies} == {Outcome.ANSWERED}
    assert ledger.num_failed[Outcome.REJECTED] <= 3 * 4  # those under way when it was found
    assert all("max_completion_tokens" in body for body in server.bodies[-4:])


def test_a_temperature_out_of_range_is_left_out_alone(server: ScriptedServer, tmp_path: Path) -> None:
    wrong = error("temperature: Input should be greater than 0", param="temperature")
    server.fail = refusing(lambda body: body.get("temperature") == 0, wrong)
    ask(server, tmp_path, request("one"), request("two", temperature=0.7), request("three"), num_parallel=1)
    assert [body.get("temperature") for body in server.bodies] == [0, None, 0.7, None]


PICTURE_LIMITS = [
    ("vllm", b'{"object": "error", "message": "At most 8 image(s) may be provided in one prompt.", "code": 400}'),
    ("azure", error("Too many images in request. Max is 8.", param=None, code="BadRequest")),
    ("anthropic", b'{"type": "error", "error": {"type": "invalid_request_error", "message": '
     b'"too many images and documents: 64 + 0 > 8"}}'),
    ("litellm", error('litellm.BadRequestError: OpenAIException - {"object":"error","message":"Image count 64 exceeds '
     'limit 8 per request.","code":400}.')),
    ("groq", error("Too many images provided. This model2 supports up to 8 images", param="messages")),
]  # fmt: skip


@pytest.mark.parametrize(("who", "payload"), PICTURE_LIMITS, ids=lambda value: value if len(value) < 20 else "")
def test_pictures_are_thinned_evenly_with_their_times(
    server: ScriptedServer, tmp_path: Path, who: str, payload: bytes
) -> None:
    server.fail = refusing(lambda body: pictures_in(body) > 8, payload)
    replies, _ = ask(server, tmp_path, shown(64), shown(16), shown(5), num_parallel=1)
    assert {reply.outcome for reply in replies} == {Outcome.ANSWERED}
    assert [pictures_in(body) for body in server.bodies] == [64, 8, 8, 5]
    note, *texts, _ = [part["text"] for part in server.bodies[1]["messages"][0]["content"] if part["type"] == "text"]
    assert note == "8 of 64 pictures are shown, evenly spread."
    assert texts == [f"[{number}.0 s]" for number in range(4, 64, 8)]
    _, ledger = ask(server, tmp_path, shown(64), shown(16), shown(5))
    assert (ledger.num_cached, len(server.bodies)) == (3, 4)  # found again under the key that they always had


TOO_LONG = [
    ("vllm", "This model's maximum context length is 4096 tokens. However, you requested {total} tokens ({prompt} in "
     "the messages, {answer} in the completion). Please reduce the length of the messages or completion."),
    ("new vllm", "'max_tokens' or 'max_completion_tokens' is too large: {answer}. This model's maximum context length "
     "is 4096 tokens and your request has {prompt} input tokens ({answer} > 4096 - {prompt})."),
    ("sglang", "Requested token count exceeds the model's maximum context length of 4096 tokens. You requested a total "
     "of {total} tokens: {prompt} tokens from the input messages and {answer} tokens for the completion."),
    ("anthropic", "input length and `max_tokens` exceed context limit: {prompt} + {answer} > 4096, decrease input"),
    ("counting no further", "This model's maximum context length is 4096 tokens. However, you requested {answer} "
     "output tokens and your prompt contains at least 3097 input tokens, for a total of at least 4097 tokens."),
]  # fmt: skip


@pytest.mark.parametrize(("who", "words"), TOO_LONG, ids=lambda value: value if len(value) < 20 else "")
def test_what_does_not_fit_into_the_context_is_shortened(
    server: ScriptedServer, tmp_path: Path, who: str, words: str
) -> None:
    """A picture is 100 tokens here; with many of them half are shown, with few the answer gets what is left."""

    def fail(body: dict[str, Any], times: int) -> Any:
        prompt, answer = 100 * pictures_in(body), body["max_tokens"]
        said = words.format(prompt=prompt, answer=answer, total=prompt + answer)
        return (400, {}, error(said, code=400)) if prompt + answer > 4096 else None

    server.fail = fail
    (many, few), _ = ask(
        server, tmp_path, shown(64, max_tokens=1000), shown(34, max_tokens=1000), num_parallel=1, price=PRICE
    )
    assert many.outcome is few.outcome is Outcome.ANSWERED
    sent = [(pictures_in(body), body["max_tokens"]) for body in server.bodies]
    assert sent[0] == (64, 1000)
    assert len(sent) <= 7
    if who == "counting no further":
        assert sent[-1] == (34, 500)
    else:
        assert sent == [(64, 1000), (32, 1000), (32, 896), (34, 1000), (34, 696)]


@pytest.mark.parametrize(
    "payload",
    [
        b'{"error": {"code": 500, "message": "the request exceeds the available context size. try increasing the '
        b'context size", "type": "exceed_context_size_error", "n_prompt_tokens": 6400, "n_ctx": 4096}}',
        b'{"error": "Trying to keep the first 6400 tokens when context the overflows."}',
        b'{"error": {"message": "prompt too long; exceeded max context length by 700 tokens", "type": "api_error"}}',
        error("maximum context length exceeded", code="context_length_exceeded", param="messages"),
    ],
)
def test_a_prompt_that_is_too_long_for_itself_shows_less(
    server: ScriptedServer, tmp_path: Path, payload: bytes
) -> None:
    status = 500 if b'"code": 500' in payload else 400
    server.fail = refusing(lambda body: pictures_in(body) > 20, payload, status)
    (reply,), _ = ask(server, tmp_path, shown(64))
    assert reply.outcome is Outcome.ANSWERED
    assert [pictures_in(body) for body in server.bodies] == [64, 32, 16]


def test_a_body_that_is_too_large_shows_less(server: ScriptedServer, tmp_path: Path) -> None:
    page = b"<html><head><title>413 Request Entity Too Large</title></head></html>"
    server.fail = refusing(lambda body: pictures_in(body) > 20, page, 413)
    ask(server, tmp_path, shown(40))
    assert [pictures_in(body) for body in server.bodies] == [40, 20]


def test_an_answer_is_as_long_as_the_server_allows(server: ScriptedServer, tmp_path: Path) -> None:
    words = (
        "max_tokens is too large: 8192. This model supports at most 4096 completion tokens, whereas you provided 8192."
    )
    server.fail = refusing(lambda body: body["max_tokens"] > 4096, error(words, param="max_tokens"))
    ask(server, tmp_path, request("one", max_tokens=8192), request("two", max_tokens=9000), request("three"))
    assert sorted(body["max_tokens"] for body in server.bodies if body["max_tokens"] <= 4096) == [512, 4096, 4096]


def test_text_goes_in_one_piece_where_parts_are_unknown(server: ScriptedServer, tmp_path: Path) -> None:
    words = error("Failed to deserialize the JSON body: messages[0]: invalid type: sequence, expected a string")
    server.fail = refusing(lambda body: not isinstance(body["messages"][0]["content"], str), words)
    server.reply = lambda body: "fine"
    ask(server, tmp_path, Request(model="model", parts=("one", "two")))
    assert server.bodies[-1]["messages"][0]["content"] == "one\n\ntwo"


REFUSED_ALWAYS = [
    (400, error("logprobs not supported"), "logprobs not supported"),
    (400, error("Stream must be set to true"), "Stream must be set to true"),
    (400, b"", "status 400 without a word"),
    (422, b'{"detail": [{"loc": ["body", "user"], "msg": "field required"}]}', "user: field required"),
    (500, b'{"error": {"code": 500, "message": "image input is not supported - you may need to provide the mmproj"}}',
     "image input is not supported"),
    (400, b'{"error": {"message": "At most 0 image(s) may be provided in one prompt.", "code": 400}}', "At most 0"),
    (400, b'{"error": {"message": "model is not a multimodal model"}}', "not a multimodal model"),
    (200, b'{"error": "Unexpected endpoint or method. Returning 200 anyway"}', "Unexpected endpoint"),
    (404, b'{"detail": "Not Found"}', "check --model and --base-url"),
    (404, b'{"error": {"message": "No endpoints found that support image input", "code": 404}}', "No endpoints found"),
    (200, b'data: {"choices": [{"delta": {"content": "a"}}]}\n\ndata: [DONE]\n\n', "in a stream only"),
]  # fmt: skip


@pytest.mark.parametrize(("status", "payload", "words"), REFUSED_ALWAYS, ids=lambda value: str(value)[:30])
def test_what_nobody_can_adapt_to_ends_with_one_line_after_a_few(
    server: ScriptedServer, tmp_path: Path, status: int, payload: bytes, words: str
) -> None:
    server.fail = lambda body, times: (status, {}, payload)
    with pytest.raises(DataError, match=words) as raised:
        ask(server, tmp_path, *(shown(2, max_tokens=number) for number in range(1, 40)), num_parallel=2, price=PRICE)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 500
    assert len(server.bodies) <= 12  # the few are put in two ways where the server doesn't say what is wrong
    calls = [json.loads(line) for line in (tmp_path / "calls.jsonl").read_text().splitlines()]
    if status in (400, 422, 500):
        ended = [call for call in calls if call["event"] == "ended"]
        assert sum(call["outcome"] == "rejected" for call in ended) == len(server.bodies)
        assert all(float(call["cost"]) == 0 and call["is_confirmed"] for call in ended)


def test_a_rejection_of_one_request_drops_that_one(server: ScriptedServer, tmp_path: Path) -> None:
    server.reply = lambda body: "fine"
    server.fail = refusing(
        lambda body: "bad" in json.dumps(body), error("prompt is too long: 9000 tokens > 8000 maximum")
    )
    ask(server, tmp_path, request("good"))
    for _ in range(2):  # also in a run of which nothing else is left
        replies, _ = ask(server, tmp_path, *(request(f"bad {number}") for number in range(40)), num_parallel=1)
        assert {reply.outcome for reply in replies} == {Outcome.REJECTED}
        assert "prompt is too long" in replies[0].text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("status", "payload"),
    [
        (400, error("The response was filtered due to the prompt triggering Azure OpenAI's content management policy.",
                    code="content_filter", param="prompt")),
        (403, b'{"error": {"message": "Your input was flagged", "code": 403, "metadata": {"reasons": ["violence"]}}}'),
        (400, error("Input data may contain inappropriate content.", code="data_inspection_failed")),
    ],
)  # fmt: skip
def test_a_filter_of_contents_ends_nothing(server: ScriptedServer, tmp_path: Path, status: int, payload: bytes) -> None:
    server.fail = lambda body, times: (status, {}, payload)
    replies, _ = ask(server, tmp_path, *(request(str(number)) for number in range(40)))
    assert {reply.outcome for reply in replies} == {Outcome.REJECTED}


def test_a_server_that_was_interrupted_while_it_was_learnt_is_asked_on(server: ScriptedServer, tmp_path: Path) -> None:
    """The first run ends between the rejection and the adapted request; nothing of it is paid twice."""
    words = error("Unsupported parameter: 'seed'", param="seed", code="unsupported_parameter")
    ends = {"now": True}

    def fail(body: dict[str, Any], times: int) -> Any:
        if "seed" in body:
            return 400, {}, words
        return (401, {}, b"{}") if ends["now"] and len(server.answered) == 2 else None

    server.fail = fail
    asked = [request(str(number), sample_index=1) for number in range(6)]
    with pytest.raises(DataError, match="refuses the key"):
        ask(server, tmp_path, *asked, num_parallel=1, price=PRICE)
    ends["now"] = False
    replies, ledger = ask(server, tmp_path, *asked, num_parallel=1, price=PRICE)
    assert {reply.outcome for reply in replies} == {Outcome.ANSWERED}
    assert (ledger.num_cached, ledger.num_made) == (2, 4)
    assert len(server.answered) == 6
    assert (ledger.usage.prompt_tokens, ledger.num_unconfirmed) == (server.reported.read, 0)
    with ResponseCache(tmp_path / "responses.jsonl") as cache:
        assert cache.adaptations() == {"model": {"without seed": 6}}


def test_a_key_that_a_server_repeats_is_not_told(
    server: ScriptedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    server.fail = lambda body, times: (400, {}, b'{"error": "Incorrect API key provided: sk-secret."}')
    (reply,), _ = ask(server, tmp_path, request())
    assert "Incorrect API key provided: …." in reply.text


# What comes back.

ANSWERS: list[tuple[dict[str, Any], Outcome, str]] = [
    ({"message": {"content": None, "reasoning_content": "It is A."}}, Outcome.ANSWERED, "It is A."),
    ({"message": {"content": "", "reasoning": "It is A."}}, Outcome.ANSWERED, "It is A."),
    ({"message": {"content": "B", "reasoning_content": "or A"}}, Outcome.ANSWERED, "B"),
    ({"message": {"content": [{"type": "text", "text": "It "}, {"type": "text", "text": "is A."}]}}, Outcome.ANSWERED,
     "It is A."),
    ({"message": {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "or B"}]},
      {"type": "text", "text": "A"}]}}, Outcome.ANSWERED, "A"),
    ({"message": {"content": None, "refusal": "I can't."}}, Outcome.REFUSED, "I can't."),
    ({"message": {"content": None}}, Outcome.INVALID, "empty"),
    ({"message": {"content": "", "reasoning_content": "hm"}, "finish_reason": "length"}, Outcome.ONLY_REASONING,
     "raise max_tokens"),
    ({"message": {"content": "<think>hm, perhaps"}, "finish_reason": "length"}, Outcome.ONLY_REASONING,
     "all 512 tokens"),
    ({"message": {"content": "<think>hm</think>It i"}, "finish_reason": "length"}, Outcome.TRUNCATED, "It i"),
]  # fmt: skip


@pytest.mark.parametrize(("choice", "outcome", "words"), ANSWERS)
def test_an_answer_is_found_wherever_a_server_puts_it(
    server: ScriptedServer, tmp_path: Path, choice: dict[str, Any], outcome: Outcome, words: str
) -> None:
    server.reply = lambda body: choice
    for _ in range(2):  # from the server and from the journal alike
        (reply,), _ = ask(server, tmp_path, request())
        assert reply.outcome is outcome
        assert words in reply.text
    assert len(server.bodies) == 1


@pytest.mark.parametrize("usage", [None, {}, {"prompt_tokens": None}, "none"])
def test_an_answer_without_a_count_is_one(server: ScriptedServer, tmp_path: Path, usage: object) -> None:
    payload = {"choices": [{"message": {"content": "fine"}}], "usage": usage}
    server.fail = lambda body, times: (200, {}, json.dumps(payload).encode())
    (reply,), ledger = ask(server, tmp_path, request(), price=PRICE)
    assert reply.outcome is Outcome.ANSWERED
    assert ledger.num_unconfirmed == 1


@pytest.mark.parametrize(("listed", "model"), [("llava:latest", "llava"), ("models/seer", "seer"), ("a/b", "a/b")])
def test_a_model_may_be_listed_with_its_folder_or_tag(
    server: ScriptedServer, tmp_path: Path, listed: str, model: str
) -> None:
    server.served = [listed]
    (reply,), _ = ask(server, tmp_path, Request(model=model, parts=("hello",)))
    assert reply.outcome is Outcome.ANSWERED


def test_every_form_of_an_error_is_read() -> None:
    assert read_rejection(400, '{"error": {"error": {"message": "deep", "param": "a.b[0]"}}}').parameters == {"a"}
    assert str(read_rejection(400, "[" * 5000))
    assert str(read_rejection(400, '{"error": {}}')) == "status 400 without a word"
    assert len(str(read_rejection(400, "x" * 10_000))) == 200
