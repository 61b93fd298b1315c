"""A process that answers one question after the other and is killed when it takes too long over one.

Computer algebra can take any time and memory for a short expression, and ignores everything but a kill. Time counts
from the moment when the process begins with a question. Questions and answers are JSON lines; the process gets none of
this one's environment, so no secret of it either.
"""

import json
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping
from typing import Any

from longrl_files.json_text import UnfitJsonError, parse_json

_START_SECONDS = 120.0


class ProcessFailedError(Exception):
    """The process took too long, or ended; the next question gets a new one."""


class KillableProcess:
    """A Python module run as a process; it says a line when it is ready, and one for each line that it gets.

    Args:
        module: The module's name.
        timeout_seconds: Longest time for an answer.
    """

    def __init__(self, module: str, timeout_seconds: float) -> None:
        self._module, self._timeout_seconds = module, timeout_seconds
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, question: Mapping[str, Any]) -> Any:
        """The process's answer, as JSON has it.

        Raises:
            ProcessFailedError: There is none.
        """
        if self._process is None:
            self._process = _start(self._module)
            self._read_line(_START_SECONDS)
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(dict(question)).encode() + b"\n")
            self._process.stdin.flush()
            return parse_json(self._read_line(self._timeout_seconds).decode())
        except (OSError, UnicodeDecodeError, UnfitJsonError) as error:
            self._stop()
            raise ProcessFailedError(f"it ended ({error})") from error

    def _read_line(self, timeout_seconds: float) -> bytes:
        process = self._process
        assert process is not None
        assert process.stdout is not None
        killer = threading.Timer(timeout_seconds, process.kill)
        killer.start()
        line = process.stdout.readline()
        killer.cancel()
        if not line.endswith(b"\n"):
            self._stop()
            raise ProcessFailedError(f"no answer within {timeout_seconds:g} s, or it ended")
        return line

    def _stop(self) -> None:
        if self._process is not None:
            _end(self._process)
            self._process = None


def _start(module: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-I", "-m", module],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={"LC_ALL": "C.UTF-8"},
    )
    weakref.finalize(process, process.kill)
    return process


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.communicate()
