"""The interface of decoders, and how one is chosen.

The indices and times of frames always come from the container's packets (`longvideo_reason_data.media.frame_index`). A
decoder only returns the pixels of given frames, and must return the right ones: a decoder whose frame count or times
differ from the container's is refused for that file. This module doesn't decode.

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
        """Yield each wanted frame, in the order of `wanted`, which is strictly ascending.

        Raises:
            DataError: When one of them can't be decoded.
        """
        ...


class Decoder(Protocol):
    """The interface of the modules in this folder."""

    def version(self) -> str:
        """Name the library and its backend with versions, for a dataset's manifest.

        Raises:
            UsageError: When it isn't installed or can't be loaded.
        """
        ...

    def open_reader(self, path: Path, index: VideoIndex, *, num_threads: int) -> AbstractContextManager[FrameReader]:
        """Open a file when the context is entered.

        Raises:
            UsageError: When the library isn't installed or can't be loaded.
            DataError: When it can't return exactly the frames of this file.
        """
        ...


def find_decoder(name: str) -> Decoder:
    """Find a decoder by its name; its library is loaded when used.

    Raises:
        UsageError: When there is none with this name.
    """
    if name not in set(DecoderName):
        raise UsageError(f"decoder is {name!r}, expected one of {', '.join(DecoderName)}")
    return cast(Decoder, import_module(f"longvideo_reason_data.media.decoders.{DecoderName(name)}"))


def decoder_version(name: str) -> str:
    """Name a decoder with its versions, for a manifest.

    Raises:
        UsageError: When there is none with this name, or it isn't installed.
    """
    return find_decoder(name).version()


def check_times(path: Path, index: VideoIndex, seconds: NDArray[np.float64], wanted: Sequence[int], name: str) -> None:
    """Compare a decoder's times for the wanted frames with the container's.

    Args:
        path: The file.
        index: Its frames.
        seconds: The decoder's times, on the container's clock.
        wanted: The indices of these frames.
        name: The decoder's name.

    Raises:
        DataError: When they differ by more than rounding.
    """
    units = index.times[np.asarray(wanted, dtype=np.int64)]
    expected = units * index.time_base.numerator / index.time_base.denominator
    # Half a millisecond, and the precision of a 32-bit float for an hour.
    wrong = np.flatnonzero(np.abs(seconds - expected) > 5e-4 + 3e-7 * np.abs(expected))
    if len(wrong):
        place = int(wrong[0])
        raise refused(
            path, name, f"it shows frame {wanted[place]} at {seconds[place]:.3f} s, not at {expected[place]:.3f} s"
        )


def refused(path: Path, name: str, why: str) -> DataError:
    """Create the error for a decoder that can't return exactly the frames of a file."""
    return DataError(f"{path}: the decoder {name} can't read it exactly ({why}); use the decoder pyav")


def refuse_unknown(path: Path, index: VideoIndex, name: str) -> None:
    """Refuse files that only the default decoder supports.

    Raises:
        DataError: When the container has no times to identify frames by, or the dynamic range must be converted.
    """
    if not index.seekable:
        raise refused(path, name, "its container has no presentation times")
    if index.dynamic_range != "standard":
        raise refused(path, name, f"its dynamic range is {index.dynamic_range}, which it doesn't convert")


def missing_library(name: str, reason: str) -> UsageError:
    """Create the error for a decoder whose library can't be loaded."""
    reason = reason.strip().partition("\n")[0]
    return UsageError(
        f"the decoder {name} can't be loaded ({reason}); install longvideo-reason-data[{name}] or use the decoder pyav"
    )
