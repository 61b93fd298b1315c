"""Servers on the loopback that misbehave, each in one way of its own, down to the bytes on the wire.

`BEHAVIOURS` names them all. `HostileServer(behaviour)` runs one; it lists its models honestly unless it is told to
misbehave there too, so that a client gets as far as asking. Nothing here knows the client: another program that asks a
server can be held against the same table.
"""

import gzip
import json
import socket
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Self

PIECE = 2**16
PAUSE_SECONDS = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """A request that arrived.

    Attributes:
        method: "GET" or "POST".
        path: Where to.
        headers: With names in small letters.
        body: What was sent.
    """

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


class Connection:
    """One connection of a client, until that or the server is gone."""

    def __init__(self, taken: socket.socket, closing: threading.Event) -> None:
        self._socket, self._closing = taken, closing
        self._unread = b""

    def read_request(self) -> Received | None:
        """Read the next request, or None when there is none any more."""
        while b"\r\n\r\n" not in self._unread:
            piece = self._socket.recv(PIECE)
            if not piece:
                return None
            self._unread += piece
        head, _, self._unread = self._unread.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        length = int(headers.get("content-length", "0"))
        while len(self._unread) < length:
            piece = self._socket.recv(PIECE)
            if not piece:
                return None
            self._unread += piece
        body, self._unread = self._unread[:length], self._unread[length:]
        method, path, _ = first.split(" ", 2)
        return Received(method=method, path=path, headers=headers, body=body)

    def send(self, content: bytes) -> None:
        """Send bytes."""
        self._socket.sendall(content)

    def send_for_ever(self, content: bytes, *, slowly: bool = False) -> None:
        """Send the same bytes until somebody ends it."""
        while not self._closing.wait(PAUSE_SECONDS if slowly else 0):
            self.send(content)

    def wait_for_ever(self) -> None:
        """Say nothing until somebody ends it."""
        self._socket.settimeout(PAUSE_SECONDS)
        while not self._closing.is_set():
            try:
                if not self._socket.recv(PIECE):
                    return
            except TimeoutError:
                continue


Behaviour = Callable[[Connection, Received], None]


class HostileServer:
    """A server with one behaviour; a context manager.

    Args:
        behaviour: What it does with a request, after which it hangs up.
        lists_models: Whether it answers a request for its models as it should.

    Attributes:
        base_url: Its address.
        received: Every request, in order.
    """

    def __init__(self, behaviour: Behaviour, *, lists_models: bool = True) -> None:
        self._behaviour, self._lists_models = behaviour, lists_models
        self.received: list[Received] = []
        self._closing = threading.Event()
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.base_url = f"http://127.0.0.1:{self._listening.getsockname()[1]}/v1"
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join()

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                taken, _ = self._listening.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(taken,), daemon=True).start()

    def _serve(self, taken: socket.socket) -> None:
        connection = Connection(taken, self._closing)
        try:
            while (request := connection.read_request()) is not None:
                self.received.append(request)
                if request.method == "GET" and self._lists_models:
                    connection.send(answer_bytes({"object": "list", "data": [{"id": "model", "object": "model"}]}))
                    continue
                self._behaviour(connection, request)
                return
        except (OSError, ValueError):
            return  # the client has gone, or speaks another protocol
        finally:
            taken.close()


def completion(content: object = "fine", **fields: Any) -> dict[str, Any]:
    """An answer as it should be, but for what is given."""
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": content}}
    usage = {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12}
    return {"id": "x", "object": "chat.completion", "created": 0, "model": "model", "choices": [choice]} | {
        "usage": usage,
        **fields,
    }


def answer_bytes(body: object, status: str = "200 OK", **headers: str) -> bytes:
    """A whole answer on the wire; the body is JSON, or bytes as they are."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    named = {"content_type": "application/json", "content_length": str(len(content)), **headers}
    lines = [f"HTTP/1.1 {status}", *(f"{name.replace('_', '-')}: {value}" for name, value in named.items())]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + content


CHUNKED = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
GOOD = json.dumps(completion()).encode()


def saying(body: object, status: str = "200 OK", **headers: str) -> Behaviour:
    """Give one and the same answer."""
    return lambda connection, request: connection.send(answer_bytes(body, status, **headers))


def sending(content: bytes, *, then: bytes = b"", slowly: bool = False) -> Behaviour:
    """Send bytes as they are, and then others for ever."""

    def act(connection: Connection, request: Received) -> None:
        connection.send(content)
        if then:
            connection.send_for_ever(then, slowly=slowly)

    return act


def hanging_after(content: bytes) -> Behaviour:
    """Send bytes, and then nothing more without hanging up."""

    def act(connection: Connection, request: Received) -> None:
        connection.send(content)
        connection.wait_for_ever()

    return act


def redirecting(status: str, location: str) -> Behaviour:
    """Send the client elsewhere; `{}` in the location is the place that it asked for."""
    return lambda connection, request: connection.send(
        answer_bytes(b"", status, location=location.format(request.path))
    )


@cache
def bomb(wbits: int) -> bytes:
    """A hundred megabytes of spaces, compressed."""
    compressor = zlib.compressobj(1, wbits=wbits)
    spaces = b" " * 2**20
    return b"".join([*(compressor.compress(spaces) for _ in range(100)), compressor.flush()])


def exploding(wbits: int, **headers: str) -> Behaviour:
    """Send a bomb, made when it is asked for."""
    return lambda connection, request: connection.send(answer_bytes(bomb(wbits), **headers))


def answer_twice(connection: Connection, request: Received) -> None:
    """Answer a question before it was asked, and stay."""
    connection.send(answer_bytes(completion()) + answer_bytes(completion("smuggled")))
    connection.wait_for_ever()


def in_pieces(content: bytes) -> Iterator[bytes]:
    """Cut bytes into pieces of the size that a socket takes."""
    return (content[place : place + PIECE] for place in range(0, len(content), PIECE))


def send_large_content(connection: Connection, request: Received) -> None:
    """Send an answer of fifty megabytes, in order."""
    before, after = GOOD.split(b"fine")
    num_bytes = 50 * 10**6
    connection.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % (len(before) + num_bytes + len(after)))
    connection.send(before)
    for piece in in_pieces(b"x" * num_bytes):
        connection.send(piece)
    connection.send(after)


def usage(**counts: object) -> Behaviour:
    """Answer well and count badly."""
    text = json.dumps(completion(usage=None)).replace("null", json.dumps(counts))
    return saying(text.encode())


def raw(text: str) -> Behaviour:
    """Answer with JSON as it is written here."""
    return saying(text.encode())


@dataclass(frozen=True, slots=True)
class HostileBehaviour:
    """A way to misbehave.

    Attributes:
        act: What is done.
        is_harmless: Whether the answer "fine" is in it all the same, and a client may take it.
        words: What a line about it has to say, if that matters.
    """

    act: Behaviour
    is_harmless: bool = False
    words: str = ""


def _of_time() -> dict[str, HostileBehaviour]:
    """Those that never come to an end."""
    late = "took too long"
    never = HostileBehaviour(lambda connection, request: connection.wait_for_ever(), words=late)
    length = b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n"
    return {
        "says nothing": never,
        "headers drip": HostileBehaviour(sending(b"HTTP/1.1 200 OK\r\nx-a: ", then=b"b", slowly=True), words=late),
        "header lines drip": HostileBehaviour(sending(b"HTTP/1.1 200 OK\r\n", then=b"x: y\r\n", slowly=True)),
        "body drips": HostileBehaviour(sending(length, then=b" ", slowly=True), words=late),
        "chunks drip": HostileBehaviour(sending(CHUNKED, then=b"1\r\n \r\n", slowly=True), words=late),
        "half a body, then silence": HostileBehaviour(hanging_after(length + GOOD[:40]), words=late),
        "chunked without end": HostileBehaviour(hanging_after(CHUNKED + b"%x\r\n" % len(GOOD) + GOOD), words=late),
        "flood of 1xx": HostileBehaviour(sending(b"", then=b"HTTP/1.1 100 Continue\r\n\r\n" * 100), words=late),
        "early hints drip": HostileBehaviour(sending(b"", then=b"HTTP/1.1 103 Hints\r\n\r\n", slowly=True), words=late),
        "another protocol": HostileBehaviour(
            hanging_after(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n")
        ),
    }


def _of_size() -> dict[str, HostileBehaviour]:
    """Those that are too large."""
    long, spaces = "longer than 8 MiB", b" " * PIECE
    chunk = b"%x\r\n" % PIECE + spaces + b"\r\n"
    endless = b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000000000\r\n\r\n"
    compressed = gzip.compress(gzip.compress(b" " * 2**24))
    many = b"[" + b"[]," * (2**21) + b"[]]"
    return {
        "endless chunks": HostileBehaviour(sending(CHUNKED, then=chunk), words=long),
        "endless body": HostileBehaviour(sending(endless, then=spaces), words=long),
        "body until it hangs up": HostileBehaviour(sending(b"HTTP/1.1 200 OK\r\n\r\n", then=spaces), words=long),
        "endless error": HostileBehaviour(sending(b"HTTP/1.1 400 No\r\n\r\n", then=spaces), words=long),
        "a header of ten megabytes": HostileBehaviour(
            sending(b"HTTP/1.1 200 OK\r\nx: " + b"y" * 10**7 + b"\r\n\r\n" + GOOD)
        ),
        "headers without end": HostileBehaviour(sending(b"HTTP/1.1 200 OK\r\n", then=b"x: y\r\n" * 1000)),
        "a status line without end": HostileBehaviour(sending(b"HTTP/1.1 200 ", then=b"O" * PIECE)),
        "a chunk's length without end": HostileBehaviour(sending(CHUNKED, then=b"0" * PIECE)),
        "trailers without end": HostileBehaviour(sending(CHUNKED + b"0\r\n", then=b"x: y\r\n" * 1000)),
        "bomb of gzip": HostileBehaviour(exploding(31, content_encoding="gzip"), words=long),
        "bomb of deflate": HostileBehaviour(exploding(15, content_encoding="deflate"), words=long),
        "bomb in a bomb": HostileBehaviour(saying(compressed, content_encoding="gzip, gzip"), words="wasn't asked for"),
        "bomb as a character set": HostileBehaviour(exploding(15, content_type="text/plain; charset=zlib")),
        "content of fifty megabytes": HostileBehaviour(send_large_content, words=long),
        "millions of arrays": HostileBehaviour(saying(many)),
    }


def _of_framing() -> dict[str, HostileBehaviour]:
    """Those that break HTTP."""
    two_lengths = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n" + GOOD
    unasked = "wasn't asked for"
    return {
        "hangs up": HostileBehaviour(lambda connection, request: None),
        "half a body": HostileBehaviour(sending(b"HTTP/1.1 200 OK\r\ncontent-length: 900\r\n\r\n" + GOOD[:50])),
        "length too short": HostileBehaviour(saying(completion(), content_length="20")),
        "length below nothing": HostileBehaviour(saying(completion(), content_length="-1")),
        "two lengths": HostileBehaviour(sending(two_lengths)),
        "a chunk of no length": HostileBehaviour(sending(CHUNKED + b"zz\r\n" + GOOD)),
        "no protocol": HostileBehaviour(sending(bytes(range(256)) * 20)),
        "another version": HostileBehaviour(sending(b"HTTP/2.0 200 OK\r\n\r\n" + GOOD), is_harmless=True),
        "status 999": HostileBehaviour(saying(completion(), "999 What")),
        "a line feed in a header": HostileBehaviour(sending(b"HTTP/1.1 200 OK\r\nx: \x00\x1b[31m\r\n\r\n" + GOOD)),
        "answers twice": HostileBehaviour(answer_twice, is_harmless=True),
        "plain body as gzip": HostileBehaviour(saying(completion(), content_encoding="gzip"), words="decompressing"),
        "half of a gzip": HostileBehaviour(saying(gzip.compress(GOOD)[:-30], content_encoding="gzip")),
        "real gzip": HostileBehaviour(saying(gzip.compress(GOOD), content_encoding="gzip"), is_harmless=True),
        "zstd": HostileBehaviour(saying(b"\x28\xb5\x2f\xfd", content_encoding="zstd"), words=unasked),
        "an encoding of its own": HostileBehaviour(saying(completion(), content_encoding="\x1b[31mx"), words=unasked),
        "no body": HostileBehaviour(saying(b"")),
        "status 204": HostileBehaviour(sending(b"HTTP/1.1 204 No Content\r\n\r\n")),
        "status 304": HostileBehaviour(sending(b"HTTP/1.1 304 Not Modified\r\n\r\n")),
        "circles": HostileBehaviour(redirecting("307 On", "{}"), words="redirects more than"),
        "circles that grow": HostileBehaviour(redirecting("308 On", "{}x"), words="redirects more than"),
        "another page": HostileBehaviour(redirecting("302 Found", "/login"), words="redirects to another page"),
        "another port": HostileBehaviour(redirecting("307 On", "http://127.0.0.1:9/v1"), words="another server"),
        "another scheme": HostileBehaviour(redirecting("308 On", "https://127.0.0.1/v1"), words="another server"),
        "a file": HostileBehaviour(redirecting("307 On", "file:///etc/hostname")),
        "no place": HostileBehaviour(redirecting("307 On", "http://[")),
        "busy until the year 9999": HostileBehaviour(
            saying(b"{}", "429 Busy", retry_after="Wed, 21 Oct 99999999999999999999 07:28:00 GMT")
        ),
    }


def _of_words() -> dict[str, HostileBehaviour]:
    """Those whose answer isn't one."""
    broken, deep = "breaks the protocol", b"[" * 100_000 + b"]" * 100_000
    message = {"role": "assistant", "content": "fine"}
    odd: dict[str, object] = {
        "choices are an object": completion(choices={"0": message}),
        "a choice is nothing": completion(choices=[None]),
        "a choice is a list": completion(choices=[[message]]),
        "a message is text": completion(choices=[{"message": "fine"}]),
        "content is a number": completion(5),
        "content is an object": completion({"text": "fine"}),
        "content has numbers in it": completion([1, 2]),
        "an end that is a number": completion(choices=[{"message": message, "finish_reason": 3}]),
        "an end of a megabyte": completion(choices=[{"message": message, "finish_reason": "x" * 10**6}]),
        "a list": [completion()],
    }
    counts: dict[str, object] = {
        "below nothing": -5,
        "huge": 10**30,
        "in words": "12",
        "true": True,
        "broken": 1.5,
        "in a list": [1],
    }
    return {
        **{name: HostileBehaviour(saying(body), words=broken) for name, body in odd.items()},
        **{
            f"count {name}": HostileBehaviour(usage(prompt_tokens=count, completion_tokens=1), words=broken)
            for name, count in counts.items()
        },
        "a count that isn't finite": HostileBehaviour(
            raw(json.dumps(completion()).replace('"prompt_tokens": 9', '"prompt_tokens": 1e999')), words=broken
        ),
        "a number that is none": HostileBehaviour(raw(json.dumps(completion(created=float("nan")))), words=broken),
        "a number of many digits": HostileBehaviour(raw(json.dumps(completion()).replace("12", "1" * 9000))),
        "deep": HostileBehaviour(saying(deep), words=broken),
        "deep within": HostileBehaviour(raw(json.dumps(completion()).replace('"fine"', deep.decode())), words=broken),
        "a deep error": HostileBehaviour(saying(deep, "400 No")),
        "half of a character": HostileBehaviour(raw(json.dumps(completion("\ud800"))), words=broken),
        "no text": HostileBehaviour(saying(GOOD.replace(b"fine", b"\xff\xfe")), words="no text in UTF-8"),
        "text of two bytes": HostileBehaviour(saying(GOOD.decode().encode("utf-16"))),
        "a picture by its type": HostileBehaviour(saying(completion(), content_type="image/png"), is_harmless=True),
        "an unknown character set": HostileBehaviour(
            saying(completion(), content_type="text/x; charset=\x01none"), is_harmless=True
        ),
        "a page": HostileBehaviour(saying(b"<html><script>x</script>Log in</html>", content_type="text/html")),
        "a stream": HostileBehaviour(
            saying(b"data: " + GOOD + b"\n\ndata: [DONE]\n\n", content_type="text/event-stream")
        ),
        "a cut answer": HostileBehaviour(saying(GOOD[:-10])),
        "an error that forges lines": HostileBehaviour(
            saying({"error": {"message": "\x1b[2J\nall is well\r\n\u202e" + "x" * 9000}}, "400 No")
        ),
        "an error with a long number": HostileBehaviour(
            saying({"error": {"message": "maximum model len " + "1" * 9000, "code": 10**4200}}, "400 No")
        ),
        "an error in an error": HostileBehaviour(saying({"error": "not found"}, "404 Not Found")),
    }


BEHAVIOURS: Mapping[str, HostileBehaviour] = {**_of_time(), **_of_size(), **_of_framing(), **_of_words()}
