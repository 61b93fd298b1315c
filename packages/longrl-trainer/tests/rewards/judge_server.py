"""A real HTTP server on the loopback with the chat protocol, in place of a paid judge; its judgements are scripted."""

import json
import re
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMPARED = re.compile(r"Right answer: <<<(.*?)>>>\s+Answer: <<<(.*?)>>>", re.DOTALL)


class JudgeServer:
    """Finds an answer right if it is the right one in other letters.

    Attributes:
        base_url: Its address.
        prompts: Every prompt that it got.
        keys: The authorization of every request.
        reply: What it answers to a right and a given answer; a number is an HTTP status.
    """

    def __init__(self) -> None:
        self.prompts: list[str] = []
        self.keys: list[str | None] = []
        self.reply: Callable[[str, str], str | int] = find_same
        outer = self

        class JudgeHandler(BaseHTTPRequestHandler):
            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is the library's
                pass

            def do_GET(self) -> None:
                self._send(200, {"object": "list", "data": [{"id": "judge", "object": "model"}]})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                content: Any = body["messages"][-1]["content"]
                prompt = content if isinstance(content, str) else "".join(part["text"] for part in content)
                outer.prompts.append(prompt)
                outer.keys.append(self.headers.get("authorization"))
                (pair,) = COMPARED.findall(prompt)
                said = outer.reply(*pair)
                if isinstance(said, int):
                    self._send(said, {"error": {"message": "no"}})
                    return
                choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": said}}
                usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
                reply = {"id": "x", "object": "chat.completion", "created": 0, "model": "judge", "usage": usage}
                self._send(200, {**reply, "choices": [choice]})

            def _send(self, status: int, value: dict[str, Any]) -> None:
                payload = json.dumps(value).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(payload)))
                self.end_headers()
                self.wfile.write(payload)

        class JudgeListener(ThreadingHTTPServer):
            request_queue_size = 128  # many connections may be made at one moment
            daemon_threads = True

        self.server = JudgeListener(("127.0.0.1", 0), JudgeHandler)
        self.base_url = f"http://127.0.0.1:{self.server.server_port}/v1"


def find_same(right: str, given: str) -> str:
    """The judgement as the prompt asks for it."""
    return json.dumps({"same": right.casefold() == given.casefold()})


@contextmanager
def serve_judge() -> Generator[JudgeServer]:
    """A server that answers within the block."""
    judge = JudgeServer()
    thread = threading.Thread(target=judge.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield judge
    finally:
        judge.server.shutdown()
        judge.server.server_close()
        thread.join()
