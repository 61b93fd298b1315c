"""The timeline world without options, and a judge of its answers.

The answer to a question is then the text of the right option, and free text is compared with it by a language model.
Here that is a real HTTP server with the chat protocol on the loopback whose judgements follow a rule, because a paid
one would measure that model: same words in the same order, whatever their case, spaces and punctuation.
"""

import json
import re
import threading
from collections.abc import Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from longvideo_reason_data.question_types import QuestionType
from longvideo_reason_data.records.answers import LETTERS
from longvideo_reason_data.records.record import QuestionRecord, read_records, write_records

JUDGE_MODEL = "same-words"
_COMPARED = re.compile(r"Right answer: <<<(.*?)>>>\s+Answer: <<<(.*?)>>>", re.DOTALL)


def write_open_dataset(dataset: Path, output: Path) -> Path:
    """Write the questions of a dataset without their options, beside a link to its media; returns its folder."""
    output.mkdir(parents=True, exist_ok=True)
    videos = output / "videos"
    if not videos.is_symlink():
        videos.symlink_to((dataset / "videos").resolve())
    write_records(output / "records.parquet", map(without_options, read_records(dataset / "records.parquet")))
    return output


def without_options(record: QuestionRecord) -> QuestionRecord:
    """The question with the text of its right option as the answer."""
    answer = record.options[LETTERS.index(record.answer)]
    open_form = {"options": (), "answer": answer, "answer_type": QuestionType.OPEN}
    return QuestionRecord.model_validate(record.model_dump() | open_form)


def says_the_same(right: str, given: str) -> bool:
    """The rule of the judge."""
    return re.findall(r"\w+", right.casefold()) == re.findall(r"\w+", given.casefold())


@contextmanager
def serve_judge() -> Generator[str]:
    """A judge within the block; yields its address."""
    server = _JudgeServer(("127.0.0.1", 0), _JudgeHandler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _JudgeServer(ThreadingHTTPServer):
    request_queue_size = 128  # many connections may be made at one moment
    daemon_threads = True


class _JudgeHandler(BaseHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is the library's
        pass

    def do_GET(self) -> None:
        self._send({"object": "list", "data": [{"id": JUDGE_MODEL, "object": "model"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        content: Any = body["messages"][-1]["content"]
        prompt = content if isinstance(content, str) else "".join(part["text"] for part in content)
        (pair,) = _COMPARED.findall(prompt)
        said = json.dumps({"same": says_the_same(*pair)})
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": said}}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        answer = {"id": "judgement", "object": "chat.completion", "created": 0, "model": JUDGE_MODEL, "usage": usage}
        self._send(answer | {"choices": [choice]})

    def _send(self, value: dict[str, Any]) -> None:
        payload = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)
