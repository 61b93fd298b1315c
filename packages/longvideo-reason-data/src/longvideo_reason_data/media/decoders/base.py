"""What a decoder is to the rest of the package, and how one is chosen.

The places and times of frames always come from the container's packets
(`longvideo_reason_data.media.frame_index`). A decoder only makes pixels of named frames, and it has to know which frame
it gives: one that counts other frames than the container has, or shows them at other times, is refused for that file.
Nothing here decodes.

F frames, H height, W width in a shape.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from enum import StrEnum
from importlib import import_module
from pathlib import Path
from typing import Protocol, cast

import numpy as np
from numpy.typing import NDArray

from longvideo_reason_data.errors import DataError, UsageError
from longvideo_reason_data.media.frame_index import VideoIndex

Pixels = NDArray[np.uint8]
"""One upright frame: uint8 [H, W, 3], RGB."""


class DecoderName(StrEnum):
    """The decoders of this package; each is a module of this folder."""

    PYAV = "pyav"
    DECORD = "decord"
    TORCHCODEC = "torchcodec"


class FrameReader(Protocol):
    """A file opened for reading frames."""

    def frames(self, wanted: Sequence[int]) -> Iterator[tuple[int, Pixels]]:
        """Give each wanted frame, in the order of `wanted`, which ascends without repetition.

        Raises:
            DataError: When one of them can't be decoded.
        """
        ...


class Decoder(Protocol):
    """What a module of this folder has."""

    def version(self) -> str:
        """Name the library and what it decodes with, as they belong into a dataset's manifest.

        Raises:
            UsageError: When it isn't installed or can't be loaded.
        """
        ...

    def open_reader(self, path: Path, index: VideoIndex, *, num_threads: int) -> AbstractContextManager[FrameReader]:
        """Open a file, as the context is entered.

        Raises:
            UsageError: When the library isn't installed or can't be loaded.
            DataError: When it can't give exactly the frames of this file.
        """
        ...


def find_decoder(name: str) -> Decoder:
    """Find a decoder by its name; its library is loaded when it is used.

    Raises:
        UsageError: When there is none of this name.
    """
    if name not in set(DecoderName):
        raise UsageError(f"decoder is {name!r}, expected one of {', '.join(DecoderName)}")
    return cast(Decoder, import_module(f"longvideo_reason_data.media.decoders.{DecoderName(name)}"))


def decoder_version(name: str) -> str:
    """Name a decoder with its versions, for a manifest.

    Raises:
        UsageError: When there is none of this name, or it isn't installed.
    """
    return find_decoder(name).version()


def check_times(path: Path, index: VideoIndex, seconds: NDArray[np.float64], wanted: Sequence[int], name: str) -> None:
    """Hold the times that a decoder gives for the wanted frames to the container's.

    Args:
        path: The file.
        index: Its frames.
        seconds: The decoder's times, counted as the container does.
        wanted: The places of these frames.
        name: The decoder's name.

    Raises:
        DataError: When they differ by more than rounding.
    """
    units = index.times[np.asarray(wanted, dtype=np.int64)]
    expected = units * index.time_base.numerator / index.time_base.denominator
    # Half a millisecond, and what a 32-bit float leaves of an hour.
    wrong = np.flatnonzero(np.abs(seconds - expected) > 5e-4 + 3e-7 * np.abs(expected))
    if len(wrong):
        place = int(wrong[0])
        raise refused(
            path, name, f"it shows frame {wanted[place]} at {seconds[place]:.3f} s, not at {expected[place]:.3f} s"
        )


def refused(path: Path, name: str, why: str) -> DataError:
    """Make the error of a decoder that can't give exactly the frames of a file."""
    return DataError(f"{path}: the decoder {name} can't read it exactly ({why}); use the decoder pyav")


def refuse_unknown(path: Path, index: VideoIndex, name: str) -> None:
    """Refuse what only the default decoder can do.

    Raises:
        DataError: When the container names no times to know frames by, or the light needs to be converted.
    """
    if not index.seekable:
        raise refused(path, name, "its container doesn't tell when frames are shown")
    if index.dynamic_range != "standard":
        raise refused(path, name, f"its light is written as {index.dynamic_range}, which it doesn't convert")


def missing_library(name: str, reason: str) -> UsageError:
    """Make the error of a decoder whose library can't be loaded."""
    reason = reason.strip().partition("\n")[0]
    return UsageError(
        f"the decoder {name} can't be loaded ({reason}); install longvideo-reason-data[{name}] or use the decoder pyav"
    )
