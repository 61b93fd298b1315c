"""The decoder decord, an extra without an update since 2021.

Its list of frames is compared with the container's. It returns pixels without times and counts frames from a key frame,
which gives wrong frames where frames are stored after a key frame but shown before it; such files are refused. It
conceals damaged data silently; only a digest of the file protects against that.
"""

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

import numpy as np

from longvideo_reason_data.errors import DataError
from longvideo_reason_data.media.decoders.base import (
    DecoderName,
    Pixels,
    check_times,
    missing_library,
    refuse_unknown,
    refused,
)
from longvideo_reason_data.media.frame_index import VideoIndex

_NUM_FRAMES_AT_ONCE = 16


class DecordReader:
    """A file opened for reading frames."""

    def __init__(self, path: Path, reader: Any) -> None:
        self._path = path
        self._reader = reader

    def frames(self, wanted: Sequence[int]) -> Iterator[tuple[int, Pixels]]:
        """Yield each wanted frame."""
        from decord import DECORDError

        for start in range(0, len(wanted), _NUM_FRAMES_AT_ONCE):
            several = list(wanted[start : start + _NUM_FRAMES_AT_ONCE])
            try:
                pixels = self._reader.get_batch(several).asnumpy()
            except DECORDError as error:
                raise DataError(
                    f"{self._path}: frames {several[0]} to {several[-1]} can't be decoded by decord; use the decoder "
                    "pyav"
                ) from error
            yield from zip(several, pixels, strict=True)


def version() -> str:
    """Name the library, which brings its own FFmpeg."""
    _load()
    return f"decord {version_of('decord')}"


@contextmanager
def open_reader(path: Path, index: VideoIndex, *, num_threads: int) -> Generator[DecordReader]:
    """Open a file when the context is entered."""
    decord = _load()
    refuse_unknown(path, index, DecoderName.DECORD)
    if index.has_leading_frames:
        raise refused(path, DecoderName.DECORD, "some frames are stored after a key frame but shown before it")
    try:
        reader = decord.VideoReader(str(path.absolute()), num_threads=num_threads)
    except (decord.DECORDError, RuntimeError, AssertionError) as error:
        raise refused(path, DecoderName.DECORD, "it can't open it") from error
    if len(reader) != len(index.times):
        raise refused(path, DecoderName.DECORD, f"it counts {len(reader)} frames, not {len(index.times)}")
    places = np.arange(len(index.times))
    starts = reader.get_frame_timestamp(places)[:, 0].astype(np.float64)
    # Its times start at the first frame in some containers and are the container's own in others.
    start = float(index.times[0] * index.time_base) if abs(starts[0]) < 1e-6 else 0.0
    check_times(path, index, starts + start, places.tolist(), DecoderName.DECORD)
    yield DecordReader(path, reader)


def _load() -> Any:
    try:
        import decord
    except (ImportError, OSError, RuntimeError) as error:
        raise missing_library(DecoderName.DECORD, str(error)) from error
    return decord
