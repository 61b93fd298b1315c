"""Whatever a server does, a question ends soon, in little memory, and with one line that says why."""

import re
import time
from pathlib import Path

import pytest
from asking import ask, request
from hostile_servers import (
    BEHAVIOURS,
    ENDLESS,
    Connection,
    HostileServer,
    Received,
    answer_bytes,
    completion,
    redirecting,
    saying,
)

from longvideo_reason_data.errors import DataError
from longvideo_reason_data.language_model.requests import Outcome

TIMEOUT_SECONDS = 0.6
MOST_SECONDS = 15.0  # on a busy machine; those that never end would take hours
MOST_BYTES = 300 * 2**20


def peak_bytes() -> int:
    """The most memory that this process had since the peak was forgotten."""
    return 1024 * int(re.findall(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[0])


def forget_peak() -> int:
    Path("/proc/self/clear_refs").write_text("5")
    return peak_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("lists_models", [True, False], ids=["asked", "listing"])
@pytest.mark.parametrize("name", BEHAVIOURS)
def test_a_server_cannot_hold_or_flood_us(name: str, lists_models: bool, tmp_path: Path) -> None:
    behaviour = BEHAVIOURS[name]
    timeout_seconds = TIMEOUT_SECONDS if name in ENDLESS else 2 * MOST_SECONDS
    memory, begin = forget_peak(), time.perf_counter()
    failure = ""
    with HostileServer(behaviour.act, lists_models=lists_models) as server:
        try:
            (reply,), _ = ask(server, tmp_path, request(), timeout_seconds=timeout_seconds, num_attempts=1)
        except DataError as error:
            failure = str(error)
        else:
            failure = "" if reply.outcome is Outcome.ANSWERED else reply.text
            assert reply.text == "fine" or not behaviour.is_harmless
        seconds = time.perf_counter() - begin
        assert server.received
    assert seconds < MOST_SECONDS
    assert peak_bytes() - memory < MOST_BYTES
    if behaviour.is_harmless:
        assert not failure
    else:
        assert failure.isprintable()
        assert 0 < len(failure) <= 400, failure
    if lists_models:
        assert re.search(behaviour.words, failure)


@pytest.mark.parametrize("status", ["301 On", "302 On", "303 On", "307 On", "308 On"])
@pytest.mark.parametrize("lists_models", [True, False])
def test_nothing_is_sent_to_another_server(status: str, lists_models: bool, tmp_path: Path) -> None:
    with HostileServer(BEHAVIOURS["a picture by its type"].act) as other:
        elsewhere = redirecting(status, other.base_url.removesuffix("/v1") + "{}?key=hidden")
        with (
            HostileServer(elsewhere, lists_models=lists_models) as server,
            pytest.raises(DataError, match=r"the server redirects to another \w+") as raised,
        ):
            ask(server, tmp_path, request("a secret question"))
        assert other.received == []
    assert "hidden" not in str(raised.value)


def test_a_question_may_go_on_to_another_place_on_its_server(tmp_path: Path) -> None:
    def act(connection: Connection, received: Received) -> None:
        if received.path.endswith("/"):
            connection.send(answer_bytes(completion("here") if received.method == "POST" else {"data": []}))
        else:
            redirecting("308 On", "{}/")(connection, received)

    with HostileServer(act, lists_models=False) as server:
        (reply,), _ = ask(server, tmp_path, request("hello"))
    assert reply.text == "here"
    assert [received.path for received in server.received][-2:] == ["/v1/chat/completions", "/v1/chat/completions/"]
    assert server.received[-1].body == server.received[-2].body


def test_an_answer_that_nobody_asked_for_answers_nothing(tmp_path: Path) -> None:
    with HostileServer(BEHAVIOURS["answers twice"].act) as server:
        replies, _ = ask(server, tmp_path, request("one"), request("two"), request("three"), num_parallel=1)
    assert {reply.text for reply in replies} == {"fine"}


def test_a_server_cannot_make_us_say_anything_later(tmp_path: Path) -> None:
    def act(connection: Connection, received: Received) -> None:
        connection.send(answer_bytes(completion(), set_cookie=f"a{len(server.received)}={'x' * 4000}; Path=/"))

    with HostileServer(act) as server:
        ask(server, tmp_path, *(request(str(number)) for number in range(4)), num_parallel=1)
        assert not any("cookie" in received.headers for received in server.received)


@pytest.mark.parametrize(
    "location",
    [
        "//",
        "http://",
        "http://127.0.0.1:99999/",
        "http://127.0.0.1:x/",
        "http://xn--\u0fff/",
        "http://" + "a" * 300,
        "?",
        "mailto:a",
        "\x00",
        "http://[::1",
        "http://a b/",
        "x" * 70000,
        "%",
        "javascript:1",
        "http://user:hidden@a/?hidden",
    ],
    ids=lambda value: value[:20],
)
def test_any_place_to_go_on_is_one_line(location: str, tmp_path: Path) -> None:
    act = saying(b"", "307 On", location=location)
    with HostileServer(act) as server:
        try:
            (reply,), _ = ask(server, tmp_path, request(), num_attempts=1, timeout_seconds=TIMEOUT_SECONDS)
            line = reply.text
        except DataError as error:
            line = str(error)
    assert line.isprintable()
    assert len(line) < 400
    assert "hidden" not in line


def test_a_plain_port_behind_tls_is_one_line(tmp_path: Path) -> None:
    with HostileServer(BEHAVIOURS["no body"].act) as server:
        base_url = server.base_url.replace("http:", "https:")
        with pytest.raises(DataError, match=r"no server answers there \(.*\); check --base-url"):
            ask(server, tmp_path, request(), base_url=base_url, timeout_seconds=TIMEOUT_SECONDS)


@pytest.mark.slow
def test_one_bad_answer_among_good_ones_costs_itself_only(tmp_path: Path) -> None:
    def act(connection: Connection, received: Received) -> None:
        name = next((name for name in BEHAVIOURS if f'"{name}"' in received.body.decode()), "")
        (BEHAVIOURS[name].act if name else good)(connection, received)

    def good(connection: Connection, received: Received) -> None:
        connection.send(answer_bytes(completion()))

    bad = ["deep", "count huge", "a number that is none", "content of fifty megabytes", "body drips", "bomb of gzip"]
    texts = [text for name in bad for text in (name, f"good beside {name}")]
    with HostileServer(act) as server:
        settings = {"timeout_seconds": 2.0, "num_attempts": 1, "num_parallel": 4}
        replies, _ = ask(server, tmp_path, *(request(text) for text in texts), **settings)
    assert [reply.outcome is Outcome.ANSWERED for reply in replies] == [False, True] * len(bad)
