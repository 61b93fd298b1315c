"""Recognises footage in any file: re-encoded, resized, slightly recoloured, at another frame rate.

A fingerprint is a short sequence of tiny grey images from equal parts of the video, each normalised for brightness and
contrast. Two videos show the same footage if they change in the same way: the mean of all frames is subtracted first,
because with a still camera different recordings of one room look the same. Only for footage in which nothing changes is
the mean itself compared.

A copy that was shortened, mirrored or cropped isn't recognised.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from longvideo_reason_data.media.image_file import FramesFile
from longvideo_reason_data.media.video_file import sample_frames

SAME_FOOTAGE = 0.8

_NUM_FRAMES = 32
_SIDE = 16
# A normalised image has energy 1; less change than this is an encoder's noise.
_LEAST_CHANGE = 0.005
_VIDEOS_AT_ONCE = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint:
    """The fingerprint of footage, 17 kB: those of a whole dataset are in memory together.

    Attributes:
        change: How it changes, unit length: float16 [frames · side · side]; all zeros if nothing changes.
        still: The mean of all frames, unit length: float16 [side · side].
    """

    change: NDArray[np.float16]
    still: NDArray[np.float16]


def fingerprint_video(video: FramesFile) -> Fingerprint:
    """Compute the fingerprint of a video from 32 of its frames; an image is a video in which nothing changes.

    Raises:
        DataError: When a frame can't be decoded.
    """
    indices = sample_frames(video, num_frames=_NUM_FRAMES)
    pictures = [_tiny(frame) for _, frame in video.frames(indices)]
    if len(pictures) < _NUM_FRAMES:  # a video of fewer frames: each is repeated according to its duration
        pictures = [pictures[place * len(pictures) // _NUM_FRAMES] for place in range(_NUM_FRAMES)]
    return _fingerprint(np.stack(pictures))


def compare_footage(ones: Sequence[Fingerprint], others: Sequence[Fingerprint]) -> NDArray[np.float32]:
    """Compute how similar videos are, from -1 to 1; at least `SAME_FOOTAGE` is the same footage.

    Returns:
        float32 [ones, others].
    """
    if not ones or not others:
        return np.zeros((len(ones), len(others)), dtype=np.float32)
    change, other_change = (_stacked([print_.change for print_ in prints]) for prints in (ones, others))
    still, other_still = (_stacked([print_.still for print_ in prints]) for prints in (ones, others))
    moves, other_moves = np.any(change, axis=1)[:, None], np.any(other_change, axis=1)[None]
    alike = np.where(moves & other_moves, change @ other_change.T, still @ other_still.T)
    return np.where(moves == other_moves, alike, np.float32(0))


def find_same_footage(fingerprints: Mapping[str, Fingerprint]) -> dict[str, str]:
    """Find videos that show the same footage as another one.

    Args:
        fingerprints: Fingerprints by the digest of the video.

    Returns:
        For each such digest the alphabetically first digest with the same footage.
    """
    names = sorted(fingerprints)
    prints = [fingerprints[name] for name in names]
    earliest: dict[int, int] = {}
    for row, column, alike in _compare_in_blocks(prints, prints, only_earlier=True):
        places, others = row + np.arange(alike.shape[0]), column + np.arange(alike.shape[1])
        is_same = (alike >= SAME_FOOTAGE) & (others[None] < places[:, None])
        for place in np.flatnonzero(is_same.any(axis=1)):
            earliest.setdefault(row + int(place), column + int(is_same[place].argmax()))
    found: dict[str, str] = {}
    for place in sorted(earliest):
        first = names[earliest[place]]
        found[names[place]] = found.get(first, first)
    return found


def find_footage(fingerprints: Mapping[str, Fingerprint], known: Sequence[Fingerprint]) -> dict[str, tuple[int, float]]:
    """Find known footage among videos.

    Args:
        fingerprints: Fingerprints by the digest of the video.
        known: The known footage.

    Returns:
        For the digest of each video that shows known footage, its index in `known` and how similar it is.
    """
    names = list(fingerprints)
    found: dict[str, tuple[int, float]] = {}
    for row, column, alike in _compare_in_blocks([fingerprints[name] for name in names], known):
        for place, best in enumerate(alike.argmax(axis=1)):
            likeness, name = float(alike[place, best]), names[row + place]
            if likeness >= SAME_FOOTAGE and likeness > found.get(name, (0, 0.0))[1]:
                found[name] = (column + int(best), likeness)
    return found


def _compare_in_blocks(
    ones: Sequence[Fingerprint], others: Sequence[Fingerprint], *, only_earlier: bool = False
) -> Iterator[tuple[int, int, NDArray[np.float32]]]:
    """Compare many with many in blocks, so that memory doesn't grow with their number.

    Yields:
        The first row and the first column of a block, and their similarities; columns ascend for each row.
    """
    for row in range(0, len(ones), _VIDEOS_AT_ONCE):
        for column in range(0, row + 1 if only_earlier else len(others), _VIDEOS_AT_ONCE):
            block = compare_footage(ones[row : row + _VIDEOS_AT_ONCE], others[column : column + _VIDEOS_AT_ONCE])
            yield row, column, block


def _stacked(vectors: Sequence[NDArray[np.float16]]) -> NDArray[np.float32]:
    return np.stack(vectors).astype(np.float32)


def _tiny(frame: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Shrink a frame to a grey image, normalised for brightness and contrast: float32 [side, side] of unit length."""
    shrunk = Image.fromarray(frame).convert("L").resize((_SIDE, _SIDE), Image.Resampling.BOX)
    grey = np.asarray(shrunk, dtype=np.float32)
    return _unit(grey - grey.mean(), least=float(_SIDE))  # a flat image has no structure except noise


def _fingerprint(pictures: NDArray[np.float32]) -> Fingerprint:
    """Separate what changes from what stays: float32 [frames, side, side]."""
    still = pictures.mean(axis=0)
    change = pictures - still
    least = float(np.sqrt(_LEAST_CHANGE * len(pictures)))
    return Fingerprint(
        change=_unit(change, least=least).ravel().astype(np.float16),
        still=_unit(still, least=1e-6).ravel().astype(np.float16),
    )


def _unit(values: NDArray[np.float32], *, least: float) -> NDArray[np.float32]:
    """Scale to unit length; zeros if the length is below `least`."""
    length = float(np.linalg.norm(values))
    return (values / length).astype(np.float32) if length >= least else np.zeros_like(values)
