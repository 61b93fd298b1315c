"""From decoded frames to samples of one channel at one rate: the mean of the channels, resampled by soxr."""

from collections.abc import Generator
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
import soxr
from av.audio.resampler import AudioResampler
from numpy.typing import NDArray

from longvideo_reason_data.errors import DataError

__all__ = ["CONVERSION", "SampleConverter"]

CONVERSION = "mean of the channels, resampled by soxr"
"""Part of the keys of stored sound."""


class SampleConverter:
    """Mixes and resamples one run of samples after another.

    Channels are mixed by their mean, on which models are trained; FFmpeg's own mixing changes loudness.
    """

    def __init__(self, path: Path, sample_rate: int) -> None:
        self._path = path
        self._sample_rate = sample_rate
        self._source_rate = sample_rate
        # Changes the format only: PyAV crashes on frames of 8 channels that lie in planes.
        self._packer = AudioResampler(format="flt")
        self._stream: Any = None

    def convert(self, frame: av.AudioFrame) -> Generator[NDArray[np.float32]]:
        """What can be computed by now."""
        if frame.sample_rate != self._source_rate:
            yield self.finish()
            self._source_rate = frame.sample_rate
        for part in self._packer.resample(frame):
            packed = cast(NDArray[np.float32], part.to_ndarray()).reshape(-1, part.layout.nb_channels)
            samples = packed.mean(axis=1, dtype=np.float32)
            if not np.isfinite(samples).all():
                raise DataError(f"{self._path}: not all samples are finite numbers; write the file again")
            yield self._resample(samples)

    def finish(self) -> NDArray[np.float32]:
        """The end of the run; the next frame begins another one."""
        rest = self._resample(np.empty(0, np.float32), is_last=True)
        self._packer, self._stream = AudioResampler(format="flt"), None
        return rest

    def _resample(self, samples: NDArray[np.float32], *, is_last: bool = False) -> NDArray[np.float32]:
        if self._source_rate == self._sample_rate:
            return samples
        if self._stream is None:
            if is_last:
                return samples
            self._stream = soxr.ResampleStream(self._source_rate, self._sample_rate, 1, dtype="float32")
        return cast(NDArray[np.float32], self._stream.resample_chunk(samples, last=is_last))
