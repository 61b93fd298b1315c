"""A chat server in a separate process that logs every request it answered; it stands in for a paid one.

    python answering_server.py LOG

It prints its address. Each line of LOG is the digest of a request whose answer was sent completely.
"""

import hashlib
import json
import os
import re
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

DELAY_SECONDS = 0.004


def answer(body: dict[str, Any]) -> str:
    """Describe pictures, write questions, rewrite reasoning, answer from the frames; the same for the same text."""
    content = body["messages"][-1]["content"]
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    mark, words = digest[:6], " ".join(digest[place : place + 4] for place in range(6, 30, 4))
    if "<answer>one letter</answer>" in content[-1]["text"]:
        place = "door" if any(part["type"] == "image_url" for part in content) else "lake"
        (letter,) = re.findall(rf"^([A-D])\. towards the {place} ", content[-1]["text"], re.MULTILINE)
        return f"<think>There it goes.</think><answer>{letter}</answer>"
    if any(part["type"] == "image_url" for part in content):
        return f"A figure {mark} crosses the room."
    if "one flowing text" in content[-1]["text"]:
        return f"From 0.2 s to 0.6 s the figure leaves its place {mark} for the door."
    question: dict[str, Any] = {
        "question": f"Where does figure {mark} go after {words}?",
        "evidence": [{"start_seconds": 0.2, "end_seconds": 0.6}],
        "reasoning": [{"start_seconds": 0.2, "end_seconds": 0.6, "thought": "It leaves for the door."}],
    }
    options = [f"towards the {place} {mark}" for place in ("door", "roof", "wall", "lake")]
    return json.dumps({**question, "options": options, "answer": "A"})


class Handler(BaseHTTPRequestHandler):
    """Answers after a moment."""

    protocol_version = "HTTP/1.1"
    log = -1

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is the library's
        """Say nothing."""

    def do_GET(self) -> None:
        """List no models, as some servers do."""
        self._send(404, b"{}")

    def do_POST(self) -> None:
        """Answer, and log it once the answer is sent."""
        raw = self.rfile.read(int(self.headers["content-length"]))
        time.sleep(DELAY_SECONDS)
        choice = {
            "index": 0,
            "finish_reason": "stop",
            "message": {"role": "assistant", "content": answer(json.loads(raw))},
        }
        usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
        reply = {"id": "x", "object": "chat.completion", "created": 0, "model": "model"}
        try:
            self._send(200, json.dumps({**reply, "choices": [choice], "usage": usage}).encode())
        except OSError:
            return  # the client was gone before it could be answered
        os.write(self.log, hashlib.sha256(raw).hexdigest().encode() + b"\n")

    def _send(self, status: int, payload: bytes) -> None:
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)


class QuietServer(ThreadingHTTPServer):
    """A server whose clients may be killed."""

    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing."""


if __name__ == "__main__":
    Handler.log = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    server = QuietServer(("127.0.0.1", 0), Handler)
    print(f"http://127.0.0.1:{server.server_port}/v1", flush=True)
    server.serve_forever()
