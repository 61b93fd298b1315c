"""Serves the page of a run on this machine's loopback address, and to requests that name that address only.

A page of another site could otherwise be made to ask this server, by a name that leads to the loopback address.
"""

import json
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock
from urllib.parse import parse_qs, unquote, urlsplit

from longrl.errors import AppError, AppUsageError
from longrl.watch.page import live_page
from longrl.watch.watched_pipeline import WatchedPipeline
from longrl.watch.watched_run import WatchedRun
from longrl_files.messages import visible
from longrl_trainer.errors import TrainerError

HOST = "127.0.0.1"
MOST_QUERY_CHARACTERS = 1000


class WatchServer(ThreadingHTTPServer):
    """The server of one run, or of the runs of a pipeline.

    Args:
        run: The run or pipeline.
        port: Port to listen on; 0 takes a free one.

    Attributes:
        run: The run or pipeline.
        lock: Held while its files are read: they are followed from where the last look ended.

    Raises:
        AppUsageError: The port can't be listened on.
    """

    daemon_threads = True

    def __init__(self, run: WatchedRun | WatchedPipeline, port: int) -> None:
        self.run = run
        self.lock = Lock()
        try:
            super().__init__((HOST, port), _Handler)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise AppUsageError(
                f"--port {port}: can't be listened on ({reason}); expected a free port, or 0"
            ) from error

    @property
    def address(self) -> str:
        """Where the page is."""
        return f"http://{HOST}:{self.server_port}/"


class _Handler(BaseHTTPRequestHandler):
    server: WatchServer  # pyright: ignore[reportIncompatibleVariableOverride]
    protocol_version = "HTTP/1.1"
    timeout = 60

    def do_GET(self) -> None:
        """Answer the page, what is new, or one group."""
        if self.headers.get("Host") not in (
            f"{HOST}:{self.server.server_port}",
            f"localhost:{self.server.server_port}",
        ):
            self._answer(HTTPStatus.FORBIDDEN, b"ask for 127.0.0.1", "text/plain")
            return
        where = urlsplit(self.path)
        if len(self.path) > MOST_QUERY_CHARACTERS:
            self._answer(HTTPStatus.REQUEST_URI_TOO_LONG, b"too long", "text/plain")
        elif where.path == "/":
            self._answer(HTTPStatus.OK, live_page(self.server.run).encode(), "text/html; charset=utf-8")
        elif where.path == "/state":
            self._answer_json(lambda: self._state(where.query))
        elif where.path.startswith("/groups/"):
            self._answer_json(lambda: self._group(unquote(where.path.removeprefix("/groups/")), where.query))
        elif where.path == "/films":
            self._answer_json(self._films)
        else:
            self._answer(HTTPStatus.NOT_FOUND, b"nothing here", "text/plain")

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Say nothing about single requests on the terminal."""

    def _state(self, query: str) -> dict[str, object]:
        asked = _read_query(query)
        counts = [asked.get(name, "0") for name in ("steps", "groups")]
        num_steps, num_groups = (int(count) if count.isascii() and count.isdigit() else 0 for count in counts)
        run, edition = self.server.run, asked.get("edition", "")
        if isinstance(run, WatchedPipeline):
            chosen = asked.get("run", "")
            return run.state(run=chosen, edition=edition, num_steps=num_steps, num_groups=num_groups)
        return run.state(edition=edition, num_steps=num_steps, num_groups=num_groups)

    def _group(self, group_id: str, query: str) -> dict[str, object] | None:
        run = self.server.run
        if isinstance(run, WatchedPipeline):
            return run.group(group_id, _read_query(query).get("run", ""))
        return run.group(group_id)

    def _films(self) -> dict[str, object] | None:
        return self.server.run.films() if isinstance(self.server.run, WatchedPipeline) else None

    def _answer_json(self, make: Callable[[], dict[str, object] | None]) -> None:
        try:
            with self.server.lock:
                made = make()
        except (AppError, TrainerError) as error:
            self._answer(HTTPStatus.CONFLICT, visible(str(error)).encode(), "text/plain; charset=utf-8")
            return
        if made is None:
            self._answer(HTTPStatus.NOT_FOUND, b"nothing here", "text/plain")
        else:
            self._answer(HTTPStatus.OK, json.dumps(made, allow_nan=False).encode(), "application/json")

    def _answer(self, status: HTTPStatus, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        self.wfile.write(body)


def _read_query(query: str) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(query).items()}
