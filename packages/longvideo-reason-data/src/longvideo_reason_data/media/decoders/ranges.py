"""Reads one long video with several threads, each a range of it between key frames.

A decoder begins at a key frame, so a video can be cut there and nothing is decoded twice. Each thread has the file open
once and takes one range after the other, always the earliest that nobody has; FFmpeg runs without Python's global
interpreter lock. Frames are returned in order. What is read ahead of the consumer is bounded, in ranges and in bytes:
where it lags behind, or a single range has very many wanted frames, the threads wait.
"""

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from itertools import pairwise

import numpy as np

from longvideo_reason_data.media.decoders.base import FrameReader, Pixels
from longvideo_reason_data.media.frame_index import VideoIndex

MOST_BYTES_AHEAD = 1 << 28
_RANGES_PER_THREAD = 8  # so that threads end at nearly the same time

OpenReader = Callable[[], AbstractContextManager[FrameReader]]
Frame = tuple[int, Pixels]


def can_be_cut(index: VideoIndex) -> bool:
    """Return whether reading may begin at any key frame; others may have to be read from their start."""
    return index.seekable and index.packets is None and len(index.key_times) > 1


class RangeReader:
    """A video that is read with several threads.

    Args:
        index: Its frames, which can be cut.
        open_reader: Opens it for one thread.
        num_threads: How many threads read it, at most.
    """

    def __init__(self, index: VideoIndex, open_reader: OpenReader, *, num_threads: int) -> None:
        self._index = index
        self._open_reader = open_reader
        self._num_threads = num_threads

    def frames(self, wanted: Sequence[int]) -> Iterator[Frame]:
        """Yield each wanted frame, in order; of one that can't be decoded, those before it."""
        most_frames = _count_frames_ahead(self._index, self._num_threads)
        ranges = cut_ranges(self._index, wanted, num_threads=self._num_threads, most_frames=most_frames)
        num_threads = min(self._num_threads, len(ranges))
        yield from _Readahead(ranges, self._open_reader, most_frames, num_threads=num_threads).frames()


def cut_ranges(index: VideoIndex, wanted: Sequence[int], *, num_threads: int, most_frames: int) -> list[Sequence[int]]:
    """Cut the wanted frames between those that are decoded from different key frames.

    Returns:
        Several ranges per thread if there are enough key frames, with at most `most_frames` frames each, unless more of
        them belong to one key frame.
    """
    most = min(most_frames, -(-len(wanted) // (_RANGES_PER_THREAD * num_threads)))
    keys = index.key_times.searchsorted(index.times[np.asarray(wanted, dtype=np.int64)], side="right")
    ends: list[int] = [*(np.flatnonzero(np.diff(keys)) + 1).tolist(), len(wanted)]
    starts = [0]
    for end, following in pairwise(ends):
        if following - starts[-1] > most:
            starts.append(end)
    return [wanted[start:end] for start, end in pairwise([*starts, len(wanted)])]


def _count_frames_ahead(index: VideoIndex, num_threads: int) -> int:
    """Count the frames of one range that may wait for the consumer."""
    frame_bytes = 3 * index.coded_width * index.coded_height
    return max(1, MOST_BYTES_AHEAD // (frame_bytes * (num_threads + 1)))


class _Readahead:
    """Ranges that are read by threads and consumed in order.

    At most one range more than there are threads is begun and not yet consumed. The earliest of them always has a
    thread, which waits for nobody but the consumer, so there is no deadlock.
    """

    def __init__(
        self, ranges: Sequence[Sequence[int]], open_reader: OpenReader, most_frames: int, *, num_threads: int
    ) -> None:
        self._ranges = ranges
        self._num_threads = num_threads
        self._open_reader = open_reader
        self._most_frames = most_frames
        self._changed = threading.Condition()
        self._ready: list[deque[Frame | Exception]] = [deque() for _ in ranges]
        self._is_ended = [False] * len(ranges)
        self._num_taken = self._num_consumed = 0
        self._is_left = False

    def frames(self) -> Generator[Frame]:
        """Yield the frames of all ranges in order."""
        with ThreadPoolExecutor(self._num_threads, thread_name_prefix="read_ranges") as pool:
            try:
                for _ in range(self._num_threads):
                    pool.submit(self._read)
                for number in range(len(self._ranges)):
                    while (result := self._next(number)) is not None:
                        if isinstance(result, Exception):
                            raise result
                        yield result
            finally:  # a consumer that stops early waits only for the frames that are being decoded
                self._update(is_left=True)

    def _next(self, number: int) -> Frame | Exception | None:
        """Wait for the next frame of a range, or the error of reading it; None at its end."""
        with self._changed:
            self._changed.wait_for(lambda: self._ready[number] or self._is_ended[number])
            result = self._ready[number].popleft() if self._ready[number] else None
            self._num_consumed += result is None
            self._changed.notify_all()
            return result

    def _read(self) -> None:
        """Read one range after the other, with one reader."""
        with ExitStack() as resources:
            reader: FrameReader | None = None
            while (number := self._take()) is not None:
                try:
                    reader = reader or resources.enter_context(self._open_reader())
                    for frame in reader.frames(self._ranges[number]):
                        if not self._put(number, frame):
                            return
                except Exception as error:  # raised where the range is consumed
                    self._put(number, error)
                self._update(ended=number)

    def _take(self) -> int | None:
        """Wait until another range may be begun; None when there is none."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_left or self._num_taken <= self._num_consumed + self._num_threads)
            if self._is_left or self._num_taken == len(self._ranges):
                return None
            self._num_taken += 1
            return self._num_taken - 1

    def _put(self, number: int, result: Frame | Exception) -> bool:
        """Wait until there is room, and pass a result on; False when nobody wants it any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_left or len(self._ready[number]) < self._most_frames)
            self._ready[number].append(result)
            self._changed.notify_all()
            return not self._is_left

    def _update(self, *, is_left: bool = False, ended: int | None = None) -> None:
        with self._changed:
            self._is_left = self._is_left or is_left
            if ended is not None:
                self._is_ended[ended] = True
            self._changed.notify_all()
