"""Cuts a video into segments, which are time ranges of the original file, never separate files.

Times are seconds from the first frame, as everywhere in this package. The segments of a video are in order, inside it
and cover it without a gap or an overlap.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from longvideo_reason_data.errors import DataError, UsageError
from longvideo_reason_data.media.video_file import FrameTimes

# A remainder shorter than this share of a window is added to the segment before.
_SMALLEST_SHARE = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A time range of a video.

    Attributes:
        number: Index among the segments of its video, from 0.
        start_seconds: Start, inclusive.
        end_seconds: End, exclusive.
    """

    number: int
    start_seconds: float
    end_seconds: float


def fixed_windows(duration_seconds: float, *, window_seconds: float = 10.0) -> tuple[Segment, ...]:
    """Cut a video into windows of equal length; the last one takes the rest.

    Args:
        duration_seconds: Length of the video.
        window_seconds: Length of a window.

    Raises:
        UsageError: When one of them isn't a positive number.
    """
    for name, value in (("duration_seconds", duration_seconds), ("window_seconds", window_seconds)):
        if not (math.isfinite(value) and value > 0):
            raise UsageError(f"{name} is {value}, expected a number above 0")
    num_windows = max(1, math.ceil(duration_seconds / window_seconds - _SMALLEST_SHARE))
    return segments_between([*(number * window_seconds for number in range(num_windows)), duration_seconds])


def segments_between(borders: Sequence[float]) -> tuple[Segment, ...]:
    """Number the time ranges between borders.

    Args:
        borders: Strictly ascending seconds, from 0 to the end of the video.
    """
    return tuple(
        Segment(number=number, start_seconds=start, end_seconds=end)
        for number, (start, end) in enumerate(pairwise(borders))
    )


def check_segments(segments: Sequence[Segment], duration_seconds: float) -> None:
    """Check segments of any origin against the rules of this module.

    Raises:
        DataError: When they aren't numbered, in order, inside the video, or don't cover it.
    """
    end = 0.0
    for number, segment in enumerate(segments):
        if segment.number != number:
            raise DataError(f"segment {segment.number} is at index {number}; segments must be numbered in order")
        if segment.start_seconds != end or segment.end_seconds <= segment.start_seconds:
            raise DataError(
                f"segment {number} is {segment.start_seconds} to {segment.end_seconds} s, expected to start at {end} s"
            )
        end = segment.end_seconds
    if abs(end - duration_seconds) > 1e-6:
        raise DataError(f"the segments end at {end} s, the video at {duration_seconds} s")


def frames_in_segment(video: FrameTimes, segment: Segment, *, num_frames: int) -> tuple[int, ...]:
    """Plan frames at the centres of equal parts of a segment.

    Returns:
        Strictly ascending; fewer than requested if the segment has fewer; the frame being shown if none begins in it.
    """
    length = segment.end_seconds - segment.start_seconds
    centres = segment.start_seconds + (np.arange(num_frames) + 0.5) * (length / num_frames)
    places = np.searchsorted(video.timestamps, centres, side="right") - 1
    return tuple(sorted({int(place) for place in np.clip(places, 0, video.frame_count - 1)}))
