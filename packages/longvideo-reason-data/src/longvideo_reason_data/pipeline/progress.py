"""The progress bars of builds and filters: number, speed, cost so far, and time left."""

from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from longvideo_reason_data.generation.one_video import Advance
from longvideo_reason_data.language_model.session import Spent


class _Rate(ProgressColumn):
    """Items per second, or per minute if slow."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        if not speed:
            return Text("")
        return Text(f"{speed:.1f}/s" if speed >= 1 else f"{speed * 60:.1f}/min")


class BuildProgress:
    """Stacked bars; a context manager.

    Args:
        console: Where they are shown; standard error when not given.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            _Rate(),
            TextColumn("{task.fields[spent]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console or Console(stderr=True),
        )

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def start_videos(self, num_videos: int) -> None:
        """Show the bar of the first stage."""
        self._videos = self._bars.add_task("videos", total=num_videos, spent="")

    def advance_video(self) -> None:
        """Count a probed file."""
        self._bars.advance(self._videos)

    def warn(self, text: str) -> None:
        """Print a line above the bars."""
        self._bars.console.print(f"warning: {text}", markup=False, highlight=False, soft_wrap=True)

    def start_generation(self, *, num_segments: int, num_questions: int) -> Advance:
        """Show the bars of the stages that use a model."""
        self._segments = self._bars.add_task("segments", total=num_segments, spent="")
        self._spending = self._questions = self._bars.add_task("questions", total=num_questions, spent="")
        return Advance(
            segment=lambda: self._bars.advance(self._segments), question=lambda: self._bars.advance(self._questions)
        )

    def advance_shard(self, *, num_segments: int, num_questions: int) -> None:
        """Count all of a video at once."""
        self._bars.advance(self._segments, num_segments)
        self._bars.advance(self._questions, num_questions)

    def start_filtering(self, num_questions: int) -> Callable[[], None]:
        """Show the bar of the filters; what is returned counts a question."""
        self._spending = bar = self._bars.add_task("filtered", total=num_questions, spent="")
        return lambda: self._bars.advance(bar)

    def show_spent(self, spent: Spent) -> None:
        """Show the usage so far, and its cost if known."""
        shown = f"{spent.num_made} calls" + (f", cost {spent.cost:.4f}" if spent.cost is not None else "")
        self._bars.update(self._spending, spent=shown)
