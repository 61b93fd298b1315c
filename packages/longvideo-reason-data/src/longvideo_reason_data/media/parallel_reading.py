"""Reads frames of many videos at once, on all cores and in bounded memory.

Decoding one video hardly gets faster with more threads, but decoding several at once does: FFmpeg runs without Python's
global interpreter lock. At most one result per worker waits to be consumed, so memory doesn't grow with the number of
videos.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from longvideo_reason_data.errors import DataError, UsageError
from longvideo_reason_data.media.video_file import VideoFile


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameRequest:
    """Frames to be read from one video.

    Attributes:
        video: The video.
        indices: Indices in presentation order, in any order.
    """

    video: VideoFile
    indices: Sequence[int]


def read_videos(
    requests: Iterable[FrameRequest], *, num_workers: int
) -> Iterator[tuple[FrameRequest, NDArray[np.uint8] | DataError]]:
    """Read many videos, several at a time; a video that can't be read doesn't stop the others.

    Args:
        requests: What to read; consumed only as fast as results are.
        num_workers: How many videos are decoded at once.

    Yields:
        Each request, in order, with its frames (uint8 [F, H, W, 3], RGB), or with the error of reading it.

    Raises:
        UsageError: When `num_workers` isn't positive.
    """
    if num_workers < 1:
        raise UsageError(f"num_workers is {num_workers}, expected 1 or more")
    return _read_videos(iter(requests), num_workers)


def _read_videos(
    requests: Iterator[FrameRequest], num_workers: int
) -> Iterator[tuple[FrameRequest, NDArray[np.uint8] | DataError]]:
    with ThreadPoolExecutor(num_workers, thread_name_prefix="read_videos") as pool:
        under_way: deque[tuple[FrameRequest, Future[NDArray[np.uint8] | DataError]]] = deque()
        try:
            for request in islice(requests, num_workers):
                under_way.append((request, pool.submit(_read, request)))
            while under_way:
                request, future = under_way.popleft()
                result = future.result()
                for following in islice(requests, 1):
                    under_way.append((following, pool.submit(_read, following)))
                yield request, result
        finally:  # a consumer that stops early waits only for what is being decoded
            pool.shutdown(wait=True, cancel_futures=True)


def _read(request: FrameRequest) -> NDArray[np.uint8] | DataError:
    try:
        return request.video.read(request.indices)
    except DataError as error:
        return error
