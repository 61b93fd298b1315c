"""Video files: probing, planning which frames to use, and reading exactly those.

A frame is identified by its index in presentation order. Times are relative to the first frame and come from the
container, not from a nominal frame rate, so variable frame rates and late starts are handled correctly. Pixels are RGB,
upright, and of the stored size; non-square pixels stay as stored. A frame that can't be decoded is an error and is
never replaced by a neighbour. The decoding library is chosen by name (`longvideo_reason_data.media.decoders`), and one
that can't read a file exactly refuses it.
"""

import hashlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from longvideo_reason_data.errors import DataError, UsageError
from longvideo_reason_data.media.decoders.agreement import check_pictures
from longvideo_reason_data.media.decoders.base import DecoderName, Pixels, decoder_version, find_decoder
from longvideo_reason_data.media.frame_index import DynamicRange, VideoIndex
from longvideo_reason_data.media.index_notes import remembered_index
from longvideo_reason_data.media.jumps import index_and_try_jumps, report_slowness
from longvideo_reason_data.media.streams import all_errors_told

MAX_PLANNED_FRAMES = 8192
"""The largest sampling plan."""

_digests: dict[tuple[str, int, int], str] = {}
_digests_lock = threading.Lock()


class FrameTimes(Protocol):
    """What a sampling plan needs to know about a video."""

    @property
    def frame_count(self) -> int:
        """Number of frames."""
        ...

    @property
    def timestamps(self) -> NDArray[np.float64]:
        """Seconds of each frame since the first one, ascending."""
        ...

    @property
    def duration_seconds(self) -> float:
        """Time from the first frame to the end of the last."""
        ...


@dataclass(frozen=True, kw_only=True)
class VideoFile:
    """A probed video file. It holds no open file, so it may be kept, shared by threads and sent to other processes.

    Attributes:
        path: The file.
        index: The index of its frames.
        num_threads: Threads that read the video at once, each a range of it between key frames; 0 for all cores that
            this process may use. Frames, and errors, are the same. For several videos, reading them at once with one
            thread each is as fast (`longvideo_reason_data.media.parallel_reading`). The extra decoders use threads as
            their libraries do.
        decoder: The decoding library.
    """

    path: Path
    index: VideoIndex = field(repr=False)
    num_threads: int = 1
    decoder: DecoderName = DecoderName.PYAV

    @classmethod
    def open(cls, path: Path | str, *, num_threads: int = 1, decoder: str = DecoderName.PYAV) -> Self:
        """Probe a file: its packets are read, its first frame is decoded, and where necessary, seeking is tested.

        What is found is remembered (`longvideo_reason_data.media.index_notes`), so that an unchanged file opens at once
        the next time.

        Args:
            path: Any container and codec that PyAV's FFmpeg reads.
            num_threads: Threads that read the video at once; 0 for all cores.
            decoder: The decoding library: `pyav`, or one of the extras `decord` and `torchcodec`.

        Raises:
            UsageError: When there is no such file or decoder, the decoder isn't installed, or there are fewer than no
                threads.
            DataError: When the file is empty, truncated, audio only, not a video, or can't be read exactly by this
                decoder.
        """
        if num_threads < 0:
            raise UsageError(f"num_threads is {num_threads}, expected 0 (all cores) or more")
        library = find_decoder(decoder)
        path = Path(path)

        def probe() -> VideoIndex:
            index = index_and_try_jumps(path)
            if decoder != DecoderName.PYAV:  # the others may refuse the file, better now than later
                with library.open_reader(path, index, num_threads=num_threads) as reader:
                    check_pictures(path, index, reader, decoder)
            return index

        with all_errors_told(path):
            versions = (decoder_version(DecoderName.PYAV), library.version())
            index = remembered_index(path, decoder, versions, probe)
        if index.is_mistimed:
            report_slowness(path)
        return cls(path=path, index=index, num_threads=num_threads, decoder=DecoderName(decoder))

    @property
    def content_digest(self) -> str:
        """SHA-256 of the file's bytes; computed once per process while size and modification time are unchanged."""
        return digest_file(self.path)

    @property
    def frame_count(self) -> int:
        """Number of frames."""
        return len(self.index.times)

    @property
    def timestamps(self) -> NDArray[np.float64]:
        """Seconds of each frame since the first one, ascending: float64 [F]."""
        return self._timestamps

    @cached_property
    def _timestamps(self) -> NDArray[np.float64]:
        units = self.index.times - self.index.times[0]
        seconds = units * self.index.time_base.numerator / self.index.time_base.denominator
        seconds.setflags(write=False)
        return seconds

    @cached_property
    def presentation_times(self) -> tuple[Fraction, ...]:
        """The same times as exact rationals."""
        start = int(self.index.times[0])
        return tuple((time - start) * self.index.time_base for time in self.index.times.tolist())

    @property
    def duration_seconds(self) -> float:
        """Time from the first frame to the end of the last."""
        units = int(self.index.times[-1]) - int(self.index.times[0]) + self.index.last_duration
        return float(units * self.index.time_base)

    @property
    def width(self) -> int:
        """Width in pixels as shown."""
        return self.index.coded_height if self.index.orientation[1] else self.index.coded_width

    @property
    def height(self) -> int:
        """Height in pixels as shown."""
        return self.index.coded_width if self.index.orientation[1] else self.index.coded_height

    @property
    def dynamic_range(self) -> DynamicRange:
        """The stored dynamic range: `standard`, or `pq` or `hlg`, which are converted to the standard range."""
        return self.index.dynamic_range

    def read(self, indices: Sequence[int]) -> NDArray[np.uint8]:
        """Decode exactly the given frames.

        Args:
            indices: Indices in presentation order, in any order, also repeated.

        Returns:
            uint8 [len(indices), height, width, 3], RGB.

        Raises:
            DataError: When an index is outside the video, or a frame can't be decoded.
        """
        places: dict[int, list[int]] = {}
        for place, frame_index in enumerate(indices):
            places.setdefault(int(frame_index), []).append(place)
        frames = np.empty((len(indices), self.height, self.width, 3), dtype=np.uint8)
        for frame_index, pixels in self.frames(sorted(places)):
            frames[places[frame_index]] = pixels
        return frames

    def frames(self, indices: Sequence[int]) -> Iterator[tuple[int, Pixels]]:
        """Decode frames one after another in one pass, for more of them than fit into memory.

        Args:
            indices: Indices in presentation order, strictly ascending.

        Yields:
            An index and its frame: uint8 [height, width, 3], RGB.

        Raises:
            DataError: When an index is outside the video, or a frame can't be decoded.
            UsageError: When the indices don't ascend.
        """
        for before, after in pairwise(indices):
            if after <= before:
                raise UsageError(f"frame {after} is requested after {before}; frames() expects ascending indices")
        outside = [index for index in (*indices[:1], *indices[-1:]) if not 0 <= index < self.frame_count]
        if outside:
            raise DataError(f"{self.path}: frame {outside[0]} requested, expected 0 to {self.frame_count - 1}")
        if not indices:
            return
        library = find_decoder(self.decoder)
        with (
            all_errors_told(self.path),
            library.open_reader(self.path, self.index, num_threads=self.num_threads) as reader,
        ):
            yield from reader.frames(indices)


def digest_file(path: Path) -> str:
    """Compute the SHA-256 of a file's bytes, once per process for an unchanged file.

    Raises:
        DataError: When it can't be read.
    """
    try:
        status = path.stat()
        key = (str(path.resolve()), status.st_size, status.st_mtime_ns)
        with _digests_lock:
            known = _digests.get(key)
        if known is None:
            with path.open("rb") as file:
                known = hashlib.file_digest(file, "sha256").hexdigest()
            with _digests_lock:
                _digests[key] = known
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error.strerror})") from error
    return known


def sample_frames(
    video: FrameTimes,
    *,
    num_frames: int | None = None,
    frames_per_second: float | None = None,
    min_frames: int | None = None,
    max_frames: int | None = None,
) -> tuple[int, ...]:
    """Plan which frames to use: those shown at the centres of equal intervals.

    Args:
        video: The video.
        num_frames: Number of frames; fewer if the video has fewer.
        frames_per_second: Frames per second of video; if `num_frames` is also given, the smaller number is used.
        min_frames: Minimum number if the rate gives fewer and the video has them.
        max_frames: Maximum number, whatever the rate gives. Without it, a rate that gives more frames than a plan
            allows is refused.

    Returns:
        Indices in presentation order, strictly ascending, at least one, at most `MAX_PLANNED_FRAMES`.

    Raises:
        UsageError: When neither number is given, one isn't positive, or the plan would be too large.
    """
    numbers = {
        "num_frames": num_frames,
        "frames_per_second": frames_per_second,
        "min_frames": min_frames,
        "max_frames": max_frames,
    }
    for name, value in numbers.items():
        if value is not None and not value > 0:
            raise UsageError(f"{name} is {value}, expected more than 0")
    for name in ("num_frames", "max_frames"):
        if (numbers[name] or 0) > MAX_PLANNED_FRAMES:
            raise UsageError(f"{name} is {numbers[name]}, expected at most {MAX_PLANNED_FRAMES}")
    if num_frames is None and frames_per_second is None:
        raise UsageError("a sampling plan needs num_frames or frames_per_second")
    limits = [limit for limit in (num_frames, max_frames) if limit is not None] + [video.frame_count]
    if frames_per_second is not None:
        limits.append(max(min_frames or 1, round(min(video.duration_seconds * frames_per_second, video.frame_count))))
    if min(limits) > MAX_PLANNED_FRAMES:
        raise UsageError(
            f"frames_per_second is {frames_per_second}, which is {min(limits)} frames of this video; expected at most "
            f"{MAX_PLANNED_FRAMES}: lower it, or set max_frames"
        )
    count, total = min(limits), video.frame_count
    centres = [(2 * place + 1) * total // (2 * count) for place in range(count)]
    if _is_constant_rate(video):
        # In integers: a centre on the border of two frames must not depend on a rounding error.
        return tuple(centres)
    times = (np.arange(count) + 0.5) * (video.duration_seconds / count)
    chosen: list[int] = (np.searchsorted(video.timestamps, times, side="right") - 1).tolist()
    for place in range(count):  # where frames are sparse, neighbouring centres fall into one frame: use the next
        lowest = chosen[place - 1] + 1 if place else 0
        chosen[place] = min(max(chosen[place], lowest), total - count + place)
    return tuple(chosen)


def _is_constant_rate(video: FrameTimes) -> bool:
    """Return whether every frame is within half a frame of its position at a constant rate."""
    gap = video.duration_seconds / video.frame_count
    return bool(np.max(np.abs(video.timestamps - np.arange(video.frame_count) * gap)) < 0.5 * gap)
