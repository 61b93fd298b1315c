"""The key of a server stays between it and us, however the server spells what it repeats."""

import base64
import html
import json
import os
import re
import string
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from urllib.parse import quote

import pyarrow.parquet as pq
import pytest
from asking import ask, request
from hostile_servers import Connection, HostileServer, Received, answer_bytes, completion, saying
from hypothesis import given
from hypothesis import strategies as st
from scripted_server import ScriptedServer, answer_like_a_model

from longvideo_reason_data.errors import DataError, UsageError
from longvideo_reason_data.language_model.server import check_access
from longvideo_reason_data.language_model.transport.redaction import REDACTED, Redaction

KEY = "sk-proj-A1b2/C3d4+E5f6_G7h8-I9j0kLmNoPqRsTuV"


def in_json(text: str) -> str:
    return "".join(f"\\u{ord(letter):04x}" for letter in text)


def in_base64(text: str) -> str:
    return base64.b64encode(f"user:{text}".encode()).decode()


SPELLINGS: dict[str, Callable[[str], str]] = {
    "plain": str,
    "capitals": str.upper,
    "bearer": lambda key: f"Bearer {key}",
    "percent": lambda key: quote(key, safe=""),
    "percent twice": lambda key: quote(quote(key, safe=""), safe=""),
    "percent throughout": lambda key: "".join(f"%{ord(letter):02X}" for letter in key),
    "json": lambda key: json.dumps(key)[1:-1],
    "json throughout": in_json,
    "json in json": lambda key: json.dumps(json.dumps(key + '"') + in_json(key)),
    "slashes": lambda key: key.replace("/", "\\/"),
    "html": lambda key: "".join(f"&#{ord(letter)};" for letter in key),
    "html in hexadecimal": lambda key: "".join(f"&#x{ord(letter):X};" for letter in key),
    "html's few": html.escape,
    "base64": lambda key: base64.b64encode(key.encode()).decode(),
    "base64 of basic": in_base64,
    "base64 for addresses": lambda key: base64.urlsafe_b64encode(f"u:{key}:x".encode()).decode(),
    "base64 in an address": lambda key: quote(base64.b64encode(key.encode()).decode(), safe=""),
}
keys = st.text(string.ascii_letters + string.digits + "-_./+=:~!*", min_size=8, max_size=200)
around = st.text(max_size=20)


def found_in(text: str, key: str) -> bool:
    """Whether somebody who tries a little can read the key in a text."""
    for _ in range(3):
        text = re.sub(r"%([0-9a-fA-F]{2})|\\+(?:u00|x)([0-9a-fA-F]{2})", lambda m: chr(int(m[1] or m[2], 16)), text)
        text = html.unescape(text)
    if key.lower() in text.replace("\\/", "/").lower():
        return True
    for run in re.findall(r"[A-Za-z0-9_+/-]{8,}", text):
        for start in range(4):
            part = run[start:].replace("-", "+").replace("_", "/")
            if key.encode() in base64.b64decode(part[: len(part) // 4 * 4]):
                return True
    return False


@pytest.mark.slow
@pytest.mark.parametrize("spell", SPELLINGS.values(), ids=SPELLINGS)
@given(key=keys, before=around, after=around)
def test_a_key_is_found_in_every_spelling(spell: Callable[[str], str], key: str, before: str, after: str) -> None:
    cleaned = Redaction([key]).clean(f"{before} {spell(key)} {after}")
    assert not found_in(cleaned, key)
    assert REDACTED in cleaned


@given(key=keys, text=st.text())
def test_what_is_no_key_stays(key: str, text: str) -> None:
    if key[:16].lower() not in text.lower():
        body = json.dumps({"text": text, "number": 17, "list": [text]})
        assert json.loads(Redaction([key + "#"]).clean_body(body)) == {"text": text, "number": 17, "list": [text]}


@given(key=keys)
def test_the_beginning_of_a_long_key_is_the_key(key: str) -> None:
    if len(key) > 16:
        assert Redaction([key]).clean(in_json(key)) == REDACTED
        assert key[:16] not in Redaction([key]).clean(f"Incorrect key: {key[: len(key) * 3 // 4]}...")


def test_json_stays_json_and_its_numbers_stay() -> None:
    body = json.dumps({"created": 1712345678, "text": 'the key "12345678"', "key 12345678": [12345678, None, True]})
    cleaned = json.loads(Redaction(["12345678"]).clean_body(body))
    assert cleaned == {
        "created": 1712345678,
        "text": f'the key "{REDACTED}"',
        f"key {REDACTED}": [12345678, None, True],
    }


@pytest.mark.parametrize("key", ["a", "EMPTY", "sk-1234"])
def test_a_short_key_is_a_word_like_others(
    key: str, server: ScriptedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    server.reply = lambda body: f"The box is EMPTY, and {key} is a word."
    (reply,), _ = ask(server, tmp_path, request())
    assert reply.text == f"The box is EMPTY, and {key} is a word."


@pytest.mark.slow
@pytest.mark.parametrize("size", ["s" * 8 * 2**20, "\\" * 8 * 2**20, "%25" * 2**21, "sk-proj-" * 2**20], ids=len)
def test_looking_for_a_key_takes_no_longer_in_odd_text(size: str) -> None:
    start = time.process_time()
    Redaction([KEY]).clean_body(size)
    assert time.process_time() - start < 10


@pytest.mark.slow
@pytest.mark.parametrize("spell", SPELLINGS.values(), ids=SPELLINGS)
def test_no_line_and_no_file_repeats_what_a_server_repeats(
    spell: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    echo = spell(KEY)
    quoted = f'"{echo}"' if "\\" in echo and '"' not in echo else json.dumps(echo)
    parts = completion(["say ", KEY[:20], KEY[20:]])
    answers: dict[str, Callable[[Connection, Received], None]] = {
        "text": saying(json.dumps(completion("XX")).replace('"XX"', quoted).encode()),
        "parts": saying(parts),
        "refusal": saying(completion(choices=[{"message": {"refusal": f"I won't: {echo}"}}])),
        "error": saying(f'{{"error": {{"message": {quoted}, "code": {quoted}}}}}'.encode(), "400 No"),
        "page": saying(f"<p>{echo}</p>".encode(), "500 Oh"),
        "header": saying(b"", f"429 {quote(echo)}", retry_after=quote(echo), x_key=quote(echo)),
        "line": lambda connection, received: connection.send(f"HTTP/1.1 {echo}\r\n\r\n".encode()),
        "place": saying(b"", "307 On", location=f"http://u:{quote(echo)}@127.0.0.1:9/{quote(echo)}?{quote(echo)}"),
    }
    lines: list[str] = []
    for name, answer in answers.items():
        with HostileServer(answer) as server:
            try:
                (reply,), _ = ask(server, tmp_path / name, request(name), num_attempts=1)
                lines.append(reply.text)
            except DataError as error:
                lines.append(str(error))
    listed = saying(f'{{"data": [{{"id": {quoted}}}]}}'.encode())
    with HostileServer(listed, lists_models=False) as server, pytest.raises(UsageError) as raised:
        ask(server, tmp_path, request())
    lines.append(str(raised.value))
    lines += [path.read_text() for path in tmp_path.rglob("*.jsonl")]
    assert len(lines) > 2 * len(answers)
    assert not [line for line in lines if found_in(line, KEY)]
    assert "say …" in (tmp_path / "parts" / "responses.jsonl").read_text()


@pytest.mark.parametrize(
    "base_url",
    [
        "http://user:hidden@127.0.0.1:9/v1",
        "http://user:hid den@127.0.0.1:9/v1",
        "user:hidden@127.0.0.1:9/v1",
        "http://127.0.0.1:9/v1?api-key=hidden",
        "http://127.0.0.1:9/v1#hidden",
        "ftp://user:hidden@127.0.0.1/v1?key=hidden",
        "http://user:hid@den@127.0.0.1:99999/v1",
    ],
)
def test_an_address_with_a_secret_is_refused_without_it(base_url: str) -> None:
    with pytest.raises(UsageError, match="--base-url") as raised:
        check_access(base_url)
    assert "hid" not in str(raised.value)


REWRITTEN = count()


def echo_everywhere(connection: Connection, received: Received) -> None:
    """Answer like a model that repeats the key in all it says; now and then as an error."""
    echoes = [spell(KEY) for spell in SPELLINGS.values()]
    if received.method == "GET":
        names = ["model", *echoes]
        connection.send(answer_bytes({"data": [{"id": name} for name in names]}, x_key=KEY))
        return
    body = json.loads(received.body)
    assert received.headers["authorization"] == f"Bearer {KEY}"
    echo = echoes[len(received.body) % len(echoes)]
    if "top_k" in body:
        error = {"error": {"message": f"unknown field top_k for {echo}", "type": "invalid_request_error"}}
        connection.send(answer_bytes(error, f"400 {KEY}", x_key=KEY))
    elif b"one flowing text" in received.body and next(REWRITTEN) % 3 == 0:
        connection.send(answer_bytes({"error": {"message": f"{echo} isn't welcome: content_filter"}}, "400 No"))
    else:
        said = answer_like_a_model(body)
        said = said.replace("A figure", f"A figure {echo}").replace("It goes", f"It goes {echo}")
        said = said.replace("It leaves", f"It leaves {json.dumps(echo)[1:-1]}")  # within JSON
        connection.send(answer_bytes(completion(said), f"200 {KEY}", x_key=KEY, set_cookie=f"key={KEY}"))


def everything_in(folder: Path) -> str:
    texts: list[str] = []
    for path in folder.rglob("*"):
        if path.suffix == ".parquet":
            texts.append(json.dumps(pq.read_table(path).to_pylist(), default=str, ensure_ascii=False))
        elif path.is_file() and path.suffix != ".mp4":
            texts.append(path.read_text(errors="replace"))
    return "\n".join(texts)


@pytest.mark.slow
def test_a_build_and_a_filter_keep_the_key_to_themselves(make_video: Callable[..., Path], tmp_path: Path) -> None:
    for number in range(2):
        make_video(f"films/film {number}.mp4", num_frames=50, first_number=100 * number)
    dataset, said = tmp_path / "dataset", ""
    environment = os.environ | {"OPENAI_API_KEY": KEY, "OPENAI_LOG": "debug"}
    with HostileServer(echo_everywhere, lists_models=False) as server:
        asking = ["--base-url", server.base_url]
        quick = ["--filters.num-samples", "2", "--filters.conditions", "blind", "full"]
        for arguments in (
            ["build", "--videos", tmp_path / "films", "--output", dataset, *asking, "--model", "model", *quick],
            ["filter", dataset, *asking, "--model", "model"],
            ["build", "--videos", tmp_path / "films", "--output", dataset, *asking, "--model", "nobody"],
        ):
            run = [sys.executable, "-m", "longvideo_reason_data", *map(str, arguments)]
            finished = subprocess.run(run, capture_output=True, text=True, env=environment, timeout=120, check=False)
            said += finished.stdout + finished.stderr
            assert "Traceback" not in finished.stderr
            assert finished.returncode == (2 if "nobody" in arguments else 0), finished.stderr
    written = everything_in(dataset)
    assert len(server.received) > 20
    assert "content_filter" in written
    assert "A figure …" in written
    assert not found_in(written, KEY)
    assert not found_in(said, KEY)
    assert "model is asked without top_k (unknown field top_k for …)" in said
