"""The default decoder: PyAV, which brings its own FFmpeg and reads every file that the probe reads.

The transfer curves PQ and HLG (ITU-R BT.2100) are converted to those of an ordinary screen (sRGB, primaries of ITU-R
BT.709) by swscale's colour mapping: one fixed function of each pixel, where reference white (203 candela per square
metre, ITU-R BT.2408) and everything brighter is 255. Without that, such frames look grey.
"""

import os
from collections import defaultdict, deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self, cast

import av
from av.video.frame import VideoFrame
from av.video.reformatter import ColorPrimaries, ColorTrc, VideoReformatter

from longvideo_reason_data.errors import DataError
from longvideo_reason_data.media.decoders.base import FrameReader, Pixels
from longvideo_reason_data.media.decoders.pyav_frames import FrameDecoder
from longvideo_reason_data.media.decoders.ranges import RangeReader, can_be_cut
from longvideo_reason_data.media.frame_index import DynamicRange, VideoIndex
from longvideo_reason_data.media.orientation import orientation_of

# For each dynamic range those that no thread is using. They keep a colour-mapping table that takes seconds to compute.
_free_converters: dict[DynamicRange, deque[VideoReformatter]] = defaultdict(deque)


@contextmanager
def _converter(dynamic_range: DynamicRange) -> Generator[VideoReformatter]:
    """Lend a converter to one thread at a time."""
    free = _free_converters[dynamic_range]
    try:
        converter = free.pop()
    except IndexError:
        converter = VideoReformatter()
    yield converter
    free.append(converter)


class PyAVReader:
    """A file opened for reading frames; a context manager."""

    def __init__(self, path: Path, index: VideoIndex, *, num_threads: int) -> None:
        self._path = path
        self._index = index
        self._decoder = FrameDecoder(path, index, num_threads=num_threads)

    def __enter__(self) -> Self:
        self._decoder.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._decoder.__exit__(kind, error, trace)

    def frames(self, wanted: Sequence[int]) -> Iterator[tuple[int, Pixels]]:
        """Yield each wanted frame."""
        for frame_index, frame in self._decoder.frames(wanted):
            yield frame_index, self._pixels(frame, frame_index)

    def _pixels(self, frame: VideoFrame, frame_index: int) -> Pixels:
        """Convert a decoded frame to upright RGB."""
        if (frame.width, frame.height) != (self._index.coded_width, self._index.coded_height):
            raise DataError(f"{self._path}: frame {frame_index} has another size than the first; convert the file")
        is_standard = self._index.dynamic_range == "standard"
        with _converter(self._index.dynamic_range) as converter:
            converted = converter.reformat(
                frame,
                format="rgb24",
                dst_color_trc=None if is_standard else ColorTrc.IEC61966_2_1,
                dst_color_primaries=None if is_standard else ColorPrimaries.BT709,
                threads=1,  # for one frame, starting threads costs more than it saves
            )
        pixels = cast(Pixels, converted.to_ndarray())
        a, b, c, d = orientation_of(self._path, frame)
        if b:
            pixels = pixels.swapaxes(0, 1)
        return pixels[:: b or d, :: c or a]


def version() -> str:
    """Name the library and its FFmpeg."""
    return f"pyav {av.__version__} (FFmpeg {av.ffmpeg_version_info})"


@contextmanager
def open_reader(path: Path, index: VideoIndex, *, num_threads: int) -> Generator[FrameReader]:
    """Open a file when the context is entered, or when a thread begins to read it."""
    num_threads = num_threads or len(os.sched_getaffinity(0))
    if num_threads > 1 and can_be_cut(index):
        yield RangeReader(index, lambda: PyAVReader(path, index, num_threads=1), num_threads=num_threads)
    else:
        with PyAVReader(path, index, num_threads=num_threads) as reader:
            yield reader
