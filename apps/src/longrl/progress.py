"""Progress for people: moving bars on a terminal, plain lines everywhere else."""

import sys
from collections.abc import Generator
from contextlib import contextmanager
from time import monotonic

from longrl_trainer.runs.progress import ProgressDisplay, RichProgress

LINES_PER_TASK = 10


def choose_progress() -> ProgressDisplay:
    """Bars if the standard error stream is a terminal, lines if it is a file or a pipe."""
    return RichProgress() if sys.stderr.isatty() else PlainProgress()


class PlainProgress:
    """At most a dozen lines per task, on the standard error stream."""

    @contextmanager
    def task(self, description: str, *, total: int, done: int = 0) -> Generator["_PlainTask"]:
        """Print lines as long as the block runs."""
        yield _PlainTask(description, total, done)

    def say(self, line: str) -> None:
        """Print the line."""
        print(line, file=sys.stderr, flush=True)


class _PlainTask:
    """One task of a plain display."""

    def __init__(self, description: str, total: int, done: int) -> None:
        self._description = description
        self._total = total
        self._done = self._done_before = done
        self._started = monotonic()
        self._shown = done * LINES_PER_TASK // max(1, total)

    def advance(self, amount: int = 1, *, note: str = "") -> None:
        """Count, and print a line at every tenth."""
        self._done += amount
        tenth = self._done * LINES_PER_TASK // max(1, self._total)
        if tenth > self._shown:
            self._shown = tenth
            said = f"{note}{self._time_left(', ' if note else '')}"
            text = f"  {self._description} {self._done}/{self._total} {said}".rstrip()
            print(text, file=sys.stderr, flush=True)

    def _time_left(self, before: str) -> str:
        """How long the rest takes at the speed so far; nothing at the end, or if that is only seconds."""
        each = (monotonic() - self._started) / max(1, self._done - self._done_before)
        seconds = each * (self._total - self._done)
        return f"{before}about {seconds / 60:.0f} min left" if seconds >= 60 else ""
