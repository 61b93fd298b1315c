"""Video files: probe, plan which frames to look at, and read exactly those.

A frame is named by its place in presentation order. Times are counted from the first frame and come from the
container, not from a nominal frame rate, so variable frame rates and late starts are right. Pixels are RGB, upright,
and of the stored size; pixels that aren't square stay as stored. A frame that can't be decoded is an error and is never
replaced by a neighbour.
"""

import hashlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Protocol, Self, cast

import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from longvideo_reason_data.errors import DataError, UsageError
from longvideo_reason_data.frame_decoder import FrameDecoder
from longvideo_reason_data.video_index import VideoIndex, index_video, orientation_of

VIDEO_SUFFIXES = frozenset(
    {
        ".mp4",
        ".m4v",
        ".mov",
        ".qt",
        ".3gp",
        ".mkv",
        ".webm",
        ".avi",
        ".ts",
        ".mts",
        ".m2ts",
        ".mpg",
        ".mpeg",
        ".vob",
        ".flv",
        ".wmv",
        ".asf",
        ".ogv",
        ".mxf",
        ".nut",
        ".ivf",
    }
)

_digests: dict[tuple[str, int, int], str] = {}
_digests_lock = threading.Lock()


class FrameTimes(Protocol):
    """What a sampling plan needs to know of a video."""

    @property
    def frame_count(self) -> int:
        """Number of frames."""
        ...

    @property
    def timestamps(self) -> NDArray[np.float64]:
        """Seconds of each frame after the first one, ascending."""
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
        index: Where its frames stand.
        num_threads: Threads that a decoder may use; 0 lets it choose.
    """

    path: Path
    index: VideoIndex = field(repr=False)
    num_threads: int = 0

    @classmethod
    def open(cls, path: Path | str, *, num_threads: int = 0) -> Self:
        """Probe a file: its packets are walked over and its first frame is decoded.

        Args:
            path: Any container and codec that PyAV's FFmpeg reads.
            num_threads: Threads that a decoder may use; 0 lets it choose.

        Raises:
            UsageError: When there is no such file.
            DataError: When it is empty, truncated, has sound only, or is no video.
        """
        path = Path(path)
        return cls(path=path, index=index_video(path), num_threads=num_threads)

    @property
    def content_digest(self) -> str:
        """SHA-256 of the file's bytes; computed once per process as long as size and time of change stay."""
        return digest_file(self.path)

    @property
    def frame_count(self) -> int:
        """Number of frames."""
        return len(self.index.times)

    @property
    def timestamps(self) -> NDArray[np.float64]:
        """Seconds of each frame after the first one, ascending: float64 [F]."""
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

    def read(self, indices: Sequence[int]) -> NDArray[np.uint8]:
        """Decode the named frames, each one exactly.

        Args:
            indices: Places in presentation order, in any order, also repeated.

        Returns:
            uint8 [len(indices), height, width, 3], RGB.

        Raises:
            DataError: When an index is outside the video, or a frame can't be decoded.
        """
        places: dict[int, list[int]] = {}
        for place, frame_index in enumerate(indices):
            places.setdefault(int(frame_index), []).append(place)
        wanted = sorted(places)
        if wanted and not 0 <= wanted[0] <= wanted[-1] < self.frame_count:
            outside = wanted[0] if wanted[0] < 0 else wanted[-1]
            raise DataError(f"{self.path}: frame {outside} asked for, expected 0 to {self.frame_count - 1}")
        frames = np.empty((len(indices), self.height, self.width, 3), dtype=np.uint8)
        reformatter = VideoReformatter()
        with FrameDecoder(self.path, self.index, num_threads=self.num_threads) as decoder:
            for frame_index, frame in decoder.frames(wanted):
                pixels = self._pixels(frame, frame_index, reformatter)
                for place in places[frame_index]:
                    frames[place] = pixels
        return frames

    def _pixels(self, frame: VideoFrame, frame_index: int, reformatter: VideoReformatter) -> NDArray[np.uint8]:
        """Convert a decoded frame to upright RGB."""
        if frame.is_corrupt:
            raise DataError(f"{self.path}: frame {frame_index} is damaged")
        if (frame.width, frame.height) != (self.index.coded_width, self.index.coded_height):
            raise DataError(f"{self.path}: frame {frame_index} is of another size than the first; convert the file")
        pixels = cast(NDArray[np.uint8], reformatter.reformat(frame, format="rgb24").to_ndarray())
        a, b, c, d = orientation_of(self.path, frame)
        if b:
            pixels = pixels.swapaxes(0, 1)
        return pixels[:: b or d, :: c or a]


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
    video: FrameTimes, *, num_frames: int | None = None, frames_per_second: float | None = None, max_frames: int = 8192
) -> tuple[int, ...]:
    """Plan which frames to look at: the ones shown at the centres of equal intervals.

    Args:
        video: The video.
        num_frames: How many frames; fewer when the video has fewer.
        frames_per_second: How many per second of video; with `num_frames` too, the smaller number counts.
        max_frames: Never more than this.

    Returns:
        Places in presentation order, strictly ascending, at least one.

    Raises:
        UsageError: When neither number is given, or one isn't positive.
    """
    for name, value in (
        ("num_frames", num_frames),
        ("frames_per_second", frames_per_second),
        ("max_frames", max_frames),
    ):
        if value is not None and value <= 0:
            raise UsageError(f"{name} is {value}, expected more than 0")
    if num_frames is None and frames_per_second is None:
        raise UsageError("a sampling plan needs num_frames or frames_per_second")
    limits = [max_frames, video.frame_count]
    if num_frames is not None:
        limits.append(num_frames)
    if frames_per_second is not None:
        limits.append(max(1, round(video.duration_seconds * frames_per_second)))
    count, total = min(limits), video.frame_count
    centres = [(2 * place + 1) * total // (2 * count) for place in range(count)]
    if _is_constant_rate(video):
        # In whole numbers: a centre that falls on the border of two frames must not hang on a rounding error.
        return tuple(centres)
    times = (np.arange(count) + 0.5) * (video.duration_seconds / count)
    chosen: list[int] = (np.searchsorted(video.timestamps, times, side="right") - 1).tolist()
    for place in range(count):  # where frames are sparse, neighbouring centres fall into one frame: take the next
        lowest = chosen[place - 1] + 1 if place else 0
        chosen[place] = min(max(chosen[place], lowest), total - count + place)
    return tuple(chosen)


def find_videos(paths: Sequence[Path]) -> list[Path]:
    """List the video files among files and folders, without opening them.

    Args:
        paths: A file is taken as it is; a folder is searched through for names that end like a video's.

    Returns:
        Each file once: in the order of the arguments, and sorted within a folder.

    Raises:
        UsageError: When a path doesn't exist or a folder holds no video.
    """
    found: dict[Path, Path] = {}
    for path in paths:
        if not path.exists():
            raise UsageError(f"{path}: no such file or folder; expected videos")
        files = [path]
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if _looks_like_video(file, path))
            if not files:
                raise UsageError(f"{path}: no videos in this folder; expected names ending in .mp4, .mkv, .webm, …")
        for file in files:
            found.setdefault(file.resolve(), file)
    return list(found.values())


def _looks_like_video(file: Path, folder: Path) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
    return file.suffix.lower() in VIDEO_SUFFIXES and not hidden and file.is_file()


def _is_constant_rate(video: FrameTimes) -> bool:
    """Say whether every frame stands within half a frame of where a constant rate would put it."""
    gap = video.duration_seconds / video.frame_count
    return bool(np.max(np.abs(video.timestamps - np.arange(video.frame_count) * gap)) < 0.5 * gap)
