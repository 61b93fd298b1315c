"""One stream of a media file, opened for reading; all other streams are skipped.

An unsuitable file is refused in a line that says what it is. Damage is reported as an error: by default a decoder would
conceal it, mostly with the neighbouring frame, or with silence.
"""

import zlib
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

import av
import numpy as np
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.stream import Discard
from av.video.stream import VideoStream
from numpy.typing import NDArray

from longvideo_reason_data.errors import DataError, UsageError
from longvideo_reason_data.media.containers import missing_bytes

OneStream = TypeVar("OneStream", VideoStream, AudioStream)

# These store a time with every frame. The others have times only in some places, or nowhere, and the library derives
# the rest from what it has read before.
_NAMES_WITH_TIMES = frozenset({"mov", "mp4", "m4a", "3gp", "3g2", "mj2", "matroska", "webm", "nut", "ivf"})


@dataclass(frozen=True, slots=True, kw_only=True)
class PacketLog:
    """The packets of a stream: checksums, and times when the file is read from its start.

    Attributes:
        times: int64 [P], ascending, in units of the stream.
        checksums: uint32 [P], of the bytes of each packet.
    """

    times: NDArray[np.int64]
    checksums: NDArray[np.uint32]

    @classmethod
    def of(cls, packets: Sequence[tuple[int, int]]) -> Self:
        """Create it from times and checksums."""
        table = np.array(sorted(packets), dtype=np.int64).reshape(-1, 2)
        return cls(times=table[:, 0].copy(), checksums=table[:, 1].astype(np.uint32))

    def holds(self, packet: "av.Packet[Any]") -> bool:
        """Return whether this packet has the same time when the file is read from its start."""
        if packet.pts is None:
            return False
        first, end = np.searchsorted(self.times, [packet.pts, packet.pts + 1])
        return bool(np.any(self.checksums[first:end] == checksum(packet)))


@contextmanager
def open_stream(
    path: Path, expected: str, container_names: frozenset[str], choose: Callable[[InputContainer], OneStream | None]
) -> Generator[tuple[InputContainer, OneStream]]:
    """Open a file and the wanted stream in it.

    Args:
        path: The file.
        expected: What it should be, such as "a video file".
        container_names: The formats that may be opened.
        choose: Finds the stream; returns None if there is none.

    Raises:
        UsageError: When there is no such file.
        DataError: When it is empty, has another format, or has no such stream.
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
        raise DataError(f"{path}: not {expected}, or too damaged to be read ({reason_of(error)})") from error
    with container:
        stream = choose(container)
        if stream is None:
            kinds = sorted({other.type for other in container.streams}) or ["nothing"]
            raise DataError(f"{path}: it contains {' and '.join(kinds)} only; expected {expected}")
        if not container_names & format_names(container):
            raise DataError(f"{path}: not {expected} (it looks like {container.format.name!r}); expected one")
        for other in container.streams:
            if other.index != stream.index:
                other.discard = Discard.all
        stream.codec_context.options = {"err_detect": "explode"}
        yield container, stream


@contextmanager
def all_errors_told(path: Path) -> Generator[None]:
    """Turn whatever a library raises while reading a file into this file's error, so that other files are still read.

    Raises:
        DataError: Instead of any other exception.
    """
    try:
        yield
    except (DataError, MemoryError):
        raise
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise DataError(f"{path}: can't be read ({type(error).__name__}{': ' * bool(reason)}{reason})") from error


def format_names(container: InputContainer) -> set[str]:
    """The names of a file's format; the library treats several formats as one."""
    return set(container.format.name.split(","))


def stores_times(container: InputContainer) -> bool:
    """Return whether a file's format stores a presentation time with every frame."""
    return bool(_NAMES_WITH_TIMES & format_names(container))


def checksum(packet: "av.Packet[Any]") -> int:
    """CRC-32 of a packet's bytes."""
    return zlib.crc32(bytes(packet))


def reason_of(error: Exception) -> str:
    """Describe an error of the library in a few words."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
