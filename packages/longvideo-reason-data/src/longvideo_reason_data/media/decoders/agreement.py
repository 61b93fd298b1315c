"""Do the pictures of an extra decoder agree with the default one's?

Counts and times can agree while the pictures are those of other frames, or of another track: a library may begin
behind the first frames, miss after a jump, or choose tracks in its own way. So some runs of neighbouring frames are
read with both when a file is opened: the first, the last, some behind key frames, some in the middle of a group, and
those that are shown at one time. Neighbours are compared too, so an error of one place shows. Where footage stands
still, neighbours are equal and nothing can tell them apart; there, a frame read in place of its neighbour is the same
picture, and counts and times remain.

The cost is bounded by the number of runs. What lies between them is not looked at.
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
# Libraries round differently within a picture; the mean of a block hardly changes.
_MAX_BLOCK_DIFFERENCE = 16.0


def check_pictures(path: Path, index: VideoIndex, reader: FrameReader, name: str) -> None:
    """Hold pictures of an extra decoder to the default decoder's.

    Frames that the default decoder can't give, because the file is damaged there, are left out.

    Args:
        path: The file.
        index: Its frames.
        reader: The file opened by the extra decoder.
        name: The extra decoder.

    Raises:
        DataError: When one of its pictures is missing, of another size, or another frame's.
    """
    # From the end to the start, so that every run is behind a jump.
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
    """Choose where to look, ascending."""
    num_frames = len(index.times)
    keys = np.searchsorted(index.times, index.key_times)
    chosen = keys[np.linspace(0, len(keys) - 1, min(_NUM_KEY_FRAMES, len(keys))).astype(int)].tolist()
    starts = {0, *chosen, max(0, num_frames - _NUM_FRAMES_OF_RUN)}
    twins = np.flatnonzero(np.diff(index.times) == 0)[:_NUM_TWINS]  # frames of one time, which a time can't tell apart
    starts |= {max(0, int(place) - 2) for place in twins}
    starts |= {key - 1 for key in chosen} | {key + _NUM_FRAMES_INTO_GROUP for key in chosen}
    return sorted(start for start in starts if 0 <= start < num_frames)


def _read_together_and_singly(reader: FrameReader, wanted: list[int]) -> Iterator[tuple[int, Pixels]]:
    yield from reader.frames(wanted)
    for place in (wanted[-1], wanted[0], wanted[len(wanted) // 2]):
        yield from reader.frames([place])


def _disagreement(place: int, pixels: Pixels, expected: dict[int, Pixels]) -> str:
    """Say what is wrong with a picture; nothing when it is right as far as anybody can see."""
    own = expected[place]
    if pixels.shape != own.shape:
        return f"its frame {place} is {pixels.shape[1]}x{pixels.shape[0]}, not {own.shape[1]}x{own.shape[0]}"
    difference = _mean_difference(pixels, own)
    if not difference:
        return ""
    nearest = min(expected, key=lambda other: _mean_difference(pixels, expected[other]))
    if _mean_difference(pixels, expected[nearest]) < difference / 2:
        return f"it gives frame {nearest} for frame {place}"
    if _block_difference(pixels, own) > _MAX_BLOCK_DIFFERENCE:
        return f"it gives another picture for frame {place}"
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
