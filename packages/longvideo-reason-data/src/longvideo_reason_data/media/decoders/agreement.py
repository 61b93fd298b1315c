"""Checks that an extra decoder's frames agree with the default one's.

Counts and times can agree while the pixels are those of other frames, or of another track: a library may skip the first
frames, miss after a seek, or choose another track. So some runs of neighbouring frames are read with both when a file
is opened: the first, the last, some after key frames, some in the middle of a group, and those with the same time.
Neighbours are compared too, which detects off-by-one errors. In still footage neighbours are equal and can't be
distinguished; there, a neighbouring frame has the same pixels, and only counts and times are checked.

The cost is bounded by the number of runs. Frames between them are not checked.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from longvideo_reason_data.errors import DataError
from longvideo_reason_data.media.decoders.base import FrameReader, Pixels, refused
from longvideo_reason_data.media.decoders.pyav import open_reader
from longvideo_reason_data.media.frame_index import VideoIndex

_NUM_FRAMES_OF_RUN = 6
_NUM_KEY_FRAMES = 3
_NUM_FRAMES_INTO_GROUP = 16
_NUM_TWINS = 2
_BLOCK = 8
# Libraries round single pixels differently; the mean of a block hardly changes.
_MAX_BLOCK_DIFFERENCE = 16.0


def check_pictures(path: Path, index: VideoIndex, reader: FrameReader, name: str) -> None:
    """Compare frames of an extra decoder with the default decoder's.

    Frames that the default decoder can't decode, because the file is damaged there, are skipped.

    Args:
        path: The file.
        index: Its frames.
        reader: The file opened by the extra decoder.
        name: The extra decoder.

    Raises:
        DataError: When one of its frames is missing, has another size, or is a different frame.
    """
    # From the end to the start, so that every run follows a seek.
    for first in _starts_of_runs(index)[::-1]:
        wanted = list(range(first, min(first + _NUM_FRAMES_OF_RUN, len(index.times))))
        try:
            with open_reader(path, index, num_threads=1) as default:
                expected = dict(default.frames(wanted))
        except DataError:
            continue
        for place, pixels in _read_together_and_singly(reader, wanted):
            why = _disagreement(place, pixels, expected)
            if why:
                raise refused(path, name, why)


def _starts_of_runs(index: VideoIndex) -> list[int]:
    """Choose the frames to check, ascending."""
    num_frames = len(index.times)
    keys = np.searchsorted(index.times, index.key_times)
    chosen = keys[np.linspace(0, len(keys) - 1, min(_NUM_KEY_FRAMES, len(keys))).astype(int)].tolist()
    starts = {0, *chosen, max(0, num_frames - _NUM_FRAMES_OF_RUN)}
    twins = np.flatnonzero(np.diff(index.times) == 0)[:_NUM_TWINS]  # frames with the same time
    starts |= {max(0, int(place) - 2) for place in twins}
    starts |= {key - 1 for key in chosen} | {key + _NUM_FRAMES_INTO_GROUP for key in chosen}
    return sorted(start for start in starts if 0 <= start < num_frames)


def _read_together_and_singly(reader: FrameReader, wanted: list[int]) -> Iterator[tuple[int, Pixels]]:
    yield from reader.frames(wanted)
    for place in (wanted[-1], wanted[0], wanted[len(wanted) // 2]):
        yield from reader.frames([place])


def _disagreement(place: int, pixels: Pixels, expected: dict[int, Pixels]) -> str:
    """Describe what is wrong with a frame; None if no difference is visible."""
    own = expected[place]
    if pixels.shape != own.shape:
        return f"its frame {place} is {pixels.shape[1]}x{pixels.shape[0]}, not {own.shape[1]}x{own.shape[0]}"
    difference = _mean_difference(pixels, own)
    if not difference:
        return ""
    nearest = min(expected, key=lambda other: _mean_difference(pixels, expected[other]))
    if _mean_difference(pixels, expected[nearest]) < difference / 2:
        return f"it returns frame {nearest} for frame {place}"
    if _block_difference(pixels, own) > _MAX_BLOCK_DIFFERENCE:
        return f"it returns different pixels for frame {place}"
    return ""


def _mean_difference(one: Pixels, other: Pixels) -> float:
    return float(np.abs(one.astype(np.int16) - other).mean())


def _block_difference(one: Pixels, other: Pixels) -> float:
    """The largest difference between the means of two blocks."""
    difference = one.astype(np.int32) - other
    for axis in (0, 1):
        starts = np.arange(0, difference.shape[axis], _BLOCK)
        sizes = np.diff([*starts, difference.shape[axis]])
        sums = np.add.reduceat(difference, starts, axis=axis)
        difference = sums / sizes.reshape(-1, *(1,) * (2 - axis))
    return float(np.abs(difference).max())
