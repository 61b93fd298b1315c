"""What the engine needs to know of audio: a protocol that any reader of audio files can satisfy."""

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

__all__ = ["AudioSource"]


class AudioSource(Protocol):
    """A signal of one channel at one rate, read in exact ranges of samples."""

    @property
    def content_digest(self) -> str:
        """SHA-256 (hex) of the source of the samples; equal digests mean equal samples."""
        ...

    @property
    def conversion(self) -> str:
        """How channels are mixed and the rate is changed; equal texts and digests mean equal samples."""
        ...

    @property
    def sample_rate(self) -> int:
        """Samples per second, as read."""
        ...

    @property
    def num_samples(self) -> int:
        """Number of samples that can be read."""
        ...

    @property
    def fillings(self) -> Sequence[tuple[int, int]]:
        """First sample and end of each silence that isn't in the file; a first one before 0 represents what is cut."""
        ...

    def read_ranges(self, ranges: Sequence[tuple[int, int]]) -> Iterator[npt.NDArray[np.float32]]:
        """Yield the samples of each range (first, end), in ascending order, each float32 [end - first]."""
        ...
