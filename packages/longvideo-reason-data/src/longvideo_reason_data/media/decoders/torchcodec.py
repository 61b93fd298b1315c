"""The decoder torchcodec, an extra: it needs torch and the shared libraries of an installed FFmpeg.

Its own list of frames, from its exact mode, may begin with frames before the first key frame. The time of every frame
is compared with the container's. It conceals damaged data silently; only a digest of the file protects against that.
"""

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longvideo_reason_data.errors import DataError, UsageError
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


class TorchCodecReader:
    """A file opened for reading frames."""

    def __init__(self, path: Path, index: VideoIndex, decoder: Any) -> None:
        self._path = path
        self._index = index
        self._decoder = decoder
        self._num_before = len(decoder) - len(index.times)

    def check(self) -> None:
        """Check the first and the last frame.

        Raises:
            DataError: When they differ from the container's.
        """
        num_frames = len(self._index.times)
        if self._num_before < 0:
            raise refused(
                self._path, DecoderName.TORCHCODEC, f"it counts {len(self._decoder)} frames, not {num_frames}"
            )
        self._read([0, num_frames - 1])

    def frames(self, wanted: Sequence[int]) -> Iterator[tuple[int, Pixels]]:
        """Yield each wanted frame."""
        for start in range(0, len(wanted), _NUM_FRAMES_AT_ONCE):
            several = wanted[start : start + _NUM_FRAMES_AT_ONCE]
            yield from zip(several, self._read(several), strict=True)

    def _read(self, wanted: Sequence[int]) -> NDArray[np.uint8]:
        try:
            batch = self._decoder.get_frames_at([self._num_before + place for place in wanted])
        except (RuntimeError, IndexError) as error:
            raise DataError(
                f"{self._path}: frames {wanted[0]} to {wanted[-1]} can't be decoded by torchcodec; use the decoder pyav"
            ) from error
        check_times(self._path, self._index, batch.pts_seconds.numpy(), wanted, DecoderName.TORCHCODEC)
        return batch.data.numpy()


def version() -> str:
    """Name the library and its FFmpeg."""
    torchcodec = _load()  # its error says what to install
    return f"torchcodec {version_of('torchcodec')} (FFmpeg {torchcodec.ffmpeg_major_version})"


@contextmanager
def open_reader(path: Path, index: VideoIndex, *, num_threads: int) -> Generator[TorchCodecReader]:
    """Open a file when the context is entered."""
    torchcodec = _load()
    refuse_unknown(path, index, DecoderName.TORCHCODEC)
    try:
        decoder = torchcodec.decoders.VideoDecoder(
            str(path.absolute()),
            stream_index=index.stream_number,
            dimension_order="NHWC",
            num_ffmpeg_threads=num_threads,
            seek_mode="exact",
        )
    except (RuntimeError, ValueError) as error:
        raise refused(path, DecoderName.TORCHCODEC, "it can't open it") from error
    reader = TorchCodecReader(path, index, decoder)
    reader.check()
    yield reader


def _load() -> Any:
    """Import the library and torch; without FFmpeg it can be imported but not used."""
    try:
        import torchcodec
    except (ImportError, OSError, RuntimeError) as error:
        raise missing_library(DecoderName.TORCHCODEC, str(error)) from error
    if not torchcodec.ffmpeg_major_version:
        raise UsageError(
            "the decoder torchcodec finds no shared FFmpeg libraries (libavcodec and others, version 4 to 9); "
            "install FFmpeg or use the decoder pyav"
        )
    return torchcodec
