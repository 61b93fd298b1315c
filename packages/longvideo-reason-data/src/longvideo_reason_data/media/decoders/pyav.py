"""The default decoder: PyAV, which brings its own FFmpeg and reads every file that the probe reads.

The transfer curves PQ and HLG (ITU-R BT.2100) are converted to those of an ordinary screen (sRGB, primaries of ITU-R
BT.709) by swscale's colour mapping: one fixed function of each pixel, where reference white (203 candela per square
metre, ITU-R BT.2408) and everything brighter is 255. Without that, such frames look grey.
"""

import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, cast

import av
from av.video.frame import VideoFrame
from av.video.reformatter import ColorPrimaries, ColorTrc, VideoReformatter

from longvideo_reason_data.errors import DataError
from longvideo_reason_data.media.decoders.base import Pixels
from longvideo_reason_data.media.decoders.pyav_frames import FrameDecoder
from longvideo_reason_data.media.frame_index import DynamicRange, VideoIndex
from longvideo_reason_data.media.orientation import orientation_of


class _Converters(threading.local):
    """Per thread, one for each dynamic range; each keeps a colour-mapping table that takes seconds to compute."""

    def __init__(self) -> None:
        self.of_range: dict[DynamicRange, VideoReformatter] = defaultdict(VideoReformatter)


_converters = _Converters()


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
        converted = _converters.of_range[self._index.dynamic_range].reformat(
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


def open_reader(path: Path, index: VideoIndex, *, num_threads: int) -> PyAVReader:
    """Open a file when the context is entered."""
    return PyAVReader(path, index, num_threads=num_threads)
