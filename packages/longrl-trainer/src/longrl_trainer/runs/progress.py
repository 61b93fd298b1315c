"""How a loop reports progress: a small protocol, a rich progress bar for people, silence for tests."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class ProgressTask(Protocol):
    """One bar."""

    def advance(self, amount: int = 1, *, note: str = "") -> None:
        """Count `amount` more as done; `note` is a status (for example the loss)."""
        ...


class ProgressDisplay(Protocol):
    """A display for bars."""

    @contextmanager
    def task(self, description: str, *, total: int, done: int = 0) -> Generator[ProgressTask]:
        """Show a bar as long as the block runs."""
        ...

    def say(self, line: str) -> None:
        """Show a line that the user should read before the run."""
        ...


class SilentProgress:
    """Shows nothing."""

    @contextmanager
    def task(self, description: str, *, total: int, done: int = 0) -> Generator["SilentProgress"]:
        """Show no bar."""
        yield self

    def say(self, line: str) -> None:
        """Say nothing."""

    def advance(self, amount: int = 1, *, note: str = "") -> None:
        """Count nothing."""


class RichProgress:
    """Bars with counts, time spent and left, and a note, on the standard error stream unless told otherwise."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)

    @contextmanager
    def task(self, description: str, *, total: int, done: int = 0) -> Generator["_RichTask"]:
        """Show a bar as long as the block runs."""
        columns = (
            TextColumn("{task.description:<24}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", style="dim"),
        )
        with Progress(*columns, console=self._console) as bars:
            yield _RichTask(bars, bars.add_task(description, total=total, completed=done, note=""))

    def say(self, line: str) -> None:
        """Print the line."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


class _RichTask:
    """One bar of a rich display."""

    def __init__(self, bars: Progress, task_id: TaskID) -> None:
        self._bars = bars
        self._task_id = task_id

    def advance(self, amount: int = 1, *, note: str = "") -> None:
        """Count `amount` more as done and show the note."""
        if note:
            self._bars.update(self._task_id, note=note)
        self._bars.advance(self._task_id, amount)
