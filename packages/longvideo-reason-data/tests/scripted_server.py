"""A simulated language model server: a real HTTP server on the loopback whose answers and faults are scripted.

It keeps its own accounts of what it charged, with which the client's are compared.
"""

import hashlib
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Failure = tuple[int, dict[str, str], bytes]

# Kinds of failure that aren't HTTP statuses.
DROPPED = 0
"""The connection is dropped before anything was done."""
LOST = -1
"""The work is done and charged for, and the connection breaks off in the middle of the answer."""
LATE = -2
"""The work is done and charged for, but not within the `seconds` of the headers; nothing is sent then."""


@dataclass(slots=True)
class Tokens:
    """Tokens in the server's accounts."""

    read: int = 0
    written: int = 0

    def add(self, read: int, written: int) -> None:
        """Charge for an answer."""
        self.read += read
        self.written += written


class ScriptedServer:
    """A real HTTP server on the loopback with the chat protocol that answers from the request's own text.

    Attributes:
        base_url: Its address.
        bodies: Every request body it got for a chat, in order.
        answered: The bodies that it answered with an ordinary reply.
        fail: Called with a body and how often it was received before; returns (status, headers, payload) to fail, or
            None.
        reply: Called with a body; returns the text, or a whole message to be sent.
        count_tokens: Called with a body and the text of the reply; returns the tokens read and generated.
        served: Names of the models it lists; None to have no list.
        wait_for_turn: Called by each request's own thread before it is answered.
        reported: Tokens read and generated for answers that were sent completely.
        unseen: Tokens that it charged for though the client never saw the answer.
    """

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.answered: list[str] = []
        self.fail: Callable[[dict[str, Any], int], Failure | None] = lambda body, times: None
        self.reply: Callable[[dict[str, Any]], str | dict[str, Any]] = answer_like_a_model
        self.count_tokens: Callable[[dict[str, Any], str], tuple[int, int]] = lambda body, words: (100, 10)
        self.wait_for_turn: Callable[[], None] = lambda: None
        self.reported, self.unseen = Tokens(), Tokens()
        self.served: list[str] | None = ["model", "seer"]
        self.num_parallel = self.most_parallel = 0
        self.delay_seconds = 0.0
        self._is_closed = False
        self._lock = threading.Lock()
        self._seen: Counter[str] = Counter()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is the library's
                pass

            def do_GET(self) -> None:
                if outer.served is None:
                    self._send(404, {}, b"{}")
                    return
                models = [{"id": name, "object": "model", "created": 0, "owned_by": "x"} for name in outer.served]
                self._send(200, {}, json.dumps({"object": "list", "data": models}).encode())

            def do_POST(self) -> None:
                raw = self.rfile.read(int(self.headers["content-length"]))
                if outer._is_closed:  # connections outlive the server
                    self.close_connection = True
                    return
                with outer._lock:
                    outer.num_parallel += 1
                    outer.most_parallel = max(outer.most_parallel, outer.num_parallel)
                time.sleep(outer.delay_seconds)
                outer.wait_for_turn()
                try:
                    self._send(*outer._handle(raw))
                finally:
                    with outer._lock:
                        outer.num_parallel -= 1

            def _send(self, status: int, headers: dict[str, str], payload: bytes) -> None:
                if status == DROPPED:
                    self.close_connection = True
                    return
                self.send_response(200 if status == LOST else status)
                for name, value in {"content-type": "application/json", **headers}.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(payload)))
                self.end_headers()
                if status == LOST:
                    self.close_connection = True
                    payload = payload[: len(payload) // 2]
                self.wfile.write(payload)

        class Server(ThreadingHTTPServer):
            request_queue_size = 128  # many connections may be made at one moment

        self._server = Server(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.handle_error = lambda request, client_address: None  # clients that are killed hang up
        self.base_url = f"http://127.0.0.1:{self._server.server_port}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    def _handle(self, raw: bytes) -> tuple[int, dict[str, str], bytes]:
        body = json.loads(raw)
        name = json.dumps(body, sort_keys=True)
        with self._lock:
            self.bodies.append(body)
            times = self._seen[name]
            self._seen[name] += 1
        failure = self.fail(body, times)
        if failure is not None and failure[0] not in (LOST, LATE):
            return failure
        reply = self.reply(body)
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": reply}}
        if isinstance(reply, dict):
            choice = {"index": 0, "finish_reason": "stop", **reply}
        read, written = self.count_tokens(body, json.dumps(choice["message"]))
        with self._lock:
            (self.unseen if failure else self.reported).add(read, written)
            if failure is None:
                self.answered.append(name)
        if failure is not None and failure[0] == LATE:
            time.sleep(float(failure[1]["seconds"]))
            return DROPPED, {}, b""
        usage = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
        payload = {"id": "x", "object": "chat.completion", "created": 0, "model": body["model"]}
        return failure[0] if failure else 200, {}, json.dumps({**payload, "choices": [choice], "usage": usage}).encode()

    def close(self) -> None:
        """Stop answering."""
        self._is_closed = True
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def answer_like_a_model(body: dict[str, Any]) -> str:
    """Describe images, and write a suitable question with everything in it."""
    content = body["messages"][-1]["content"]
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    if "<answer>one letter</answer>" in content[-1]["text"]:
        return _answer_what_is_seen(content)
    mark, words = digest[:6], " ".join(digest[place : place + 4] for place in range(6, 30, 4))
    if any(part["type"] == "image_url" for part in content):
        return f"A figure {mark} crosses the room."
    text = json.dumps(content)
    if "Write the same reasoning as one flowing text" in text:
        return "From 0.2 s to 0.6 s the figure leaves its place for the door, so option A is right."
    question: dict[str, Any] = {
        "question": f"Where does figure {mark} go after {words}?",
        "evidence": [{"start_seconds": 0.2, "end_seconds": 0.6}],
        "reasoning": [{"start_seconds": 0.2, "end_seconds": 0.6, "thought": "It leaves its place for the door."}],
    }
    if "There are no options" in text:
        return json.dumps({**question, "answer": "to the door"})
    options = [f"towards the {place} {mark}" for place in ("door", "roof", "wall", "lake")]
    return json.dumps({**question, "options": options, "answer": "A"})


def _answer_what_is_seen(content: list[dict[str, Any]]) -> str:
    """Choose the way to the door with several images shown, else the one to the lake."""
    place = "door" if sum(part["type"] == "image_url" for part in content) > 1 else "lake"
    (letter,) = re.findall(rf"^([A-D])\. towards the {place} ", content[-1]["text"], re.MULTILINE)
    return f"<think>There it goes.</think><answer>{letter}</answer>"
