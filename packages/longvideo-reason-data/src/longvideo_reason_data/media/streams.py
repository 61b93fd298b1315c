"""One stream of a media file, opened for reading; every other stream is left unread.

A file that can't be it is refused in a line that says what it is. What is damaged shows as an error: a decoder left to
itself would paint over it, mostly with the neighbouring picture, or fill it with silence.
"""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import av
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.stream import Discard
from av.video.stream import VideoStream

from longvideo_reason_data.errors import DataError, UsageError
from longvideo_reason_data.media.containers import missing_bytes

OneStream = TypeVar("OneStream", VideoStream, AudioStream)


@contextmanager
def open_stream(
    path: Path, expected: str, container_names: frozenset[str], choose: Callable[[InputContainer], OneStream | None]
) -> Generator[tuple[InputContainer, OneStream]]:
    """Open a file and the stream of it that is wanted.

    Args:
        path: The file.
        expected: What it should be, such as "a video file".
        container_names: The formats that may be opened.
        choose: Finds the stream; None if there is none.

    Raises:
        UsageError: When there is no such file.
        DataError: When it is empty, of another format, or has no such stream.
    """
    if not path.is_file():
        raise UsageError(f"{path}: {'a folder' if path.is_dir() else 'no such file'}; expected {expected}")
    if path.stat().st_size == 0:
        raise DataError(f"{path}: the file is empty; expected {expected}")
    try:
        container = av.open(str(path.absolute()), mode="r", metadata_errors="ignore")
    except (av.FFmpegError, OSError, UnicodeError) as error:
        missing = missing_bytes(path)
        if missing:
            raise DataError(f"{path}: truncated, {missing} bytes are missing at the end; copy it again") from error
        raise DataError(f"{path}: not {expected}, or damaged beyond reading ({reason_of(error)})") from error
    with container:
        stream = choose(container)
        if stream is None:
            kinds = sorted({other.type for other in container.streams}) or ["nothing"]
            raise DataError(f"{path}: it holds {' and '.join(kinds)} only; expected {expected}")
        if not container_names & format_names(container):
            raise DataError(f"{path}: not {expected} (it looks like {container.format.name!r}); expected one")
        for other in container.streams:
            if other.index != stream.index:
                other.discard = Discard.all
        stream.codec_context.options = {"err_detect": "explode"}
        yield container, stream


def format_names(container: InputContainer) -> set[str]:
    """The names of a file's format; several programs' formats are one to the library."""
    return set(container.format.name.split(","))


def reason_of(error: Exception) -> str:
    """Name an error of the library in a few words."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
