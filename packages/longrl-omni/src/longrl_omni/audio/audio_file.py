"""Audio files: probing, and reading exact ranges of samples as one channel at one rate.

A sample is identified by its index in the file's signal after mixing to mono and resampling, so a range always has the
same values, however it is read. Probing decodes the whole file once: only that shows how many samples there are and
that none of them is damaged. The module is independent of models and keeps no signal in memory.

The signal uses the video's clock: sample 0 is at the time of the first frame, or of the first sound if there are no
frames. A gap in the file's timestamps becomes silence; sound before the first frame is cut. This is as exact as the
timestamps are; a gap shorter than half a packet is treated as rounding.
"""

import logging
from collections.abc import Generator, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Self, cast

import av
import numpy as np
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.video.stream import VideoStream
from numpy.typing import NDArray

from longrl_omni.audio.conversion import CONVERSION, SampleConverter
from longrl_omni.audio.declared_lengths import declared_seconds, missing_wave_bytes, mp3_header_seconds
from longvideo_reason_data.errors import DataError, UsageError
from longvideo_reason_data.media.containers import CONTAINER_NAMES, missing_bytes
from longvideo_reason_data.media.frame_index import main_video_stream
from longvideo_reason_data.media.streams import open_stream, reason_of
from longvideo_reason_data.media.video_file import digest_file

SAMPLE_RATE = 16_000
"""Samples per second that speech and audio encoders are trained on."""

AUDIO_CONTAINER_NAMES = frozenset({"wav", "w64", "flac", "aiff", "mp3", "aac", "au", "caf", "ac3", "amr"})

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class AudioFile:
    """A probed audio file, or the audio of a video file. It holds no open file, so it may be kept and shared.

    Attributes:
        path: The file.
        sample_rate: Samples per second when read.
        num_samples: Number of samples.
        source_rate: Samples per second as stored.
        num_channels: Channels as stored.
        codec: Name of the codec.
        fillings: First sample and end of each silence required by the file's timestamps; one that begins before 0 and
            ends there represents sound before the first frame, which is cut.
    """

    path: Path
    sample_rate: int
    num_samples: int
    source_rate: int
    num_channels: int
    codec: str
    fillings: tuple[tuple[int, int], ...] = ()

    @classmethod
    def open(cls, path: Path | str, *, sample_rate: int = SAMPLE_RATE) -> Self:
        """Probe a file by decoding it once.

        Args:
            path: Any container and codec that PyAV's FFmpeg reads; of several audio streams the main one is used.
            sample_rate: Samples per second when read.

        Raises:
            UsageError: There is no such file.
            DataError: The file is empty, truncated, damaged, has no audio stream, or is no recording.
        """
        path = Path(path)
        if sample_rate <= 0:
            raise UsageError(f"sample_rate is {sample_rate}, expected more than 0")
        with _open_audio(path) as (container, stream):
            missing = missing_bytes(path) or missing_wave_bytes(path)
            if missing:
                raise DataError(f"{path}: truncated, {missing} bytes are missing at the end; copy it again")
            source_rate, num_channels = stream.codec_context.sample_rate, stream.codec_context.channels
            codec = stream.codec_context.name
            declared = declared_seconds(container, stream)
            header_seconds = mp3_header_seconds(path, stream)
        fillings: list[tuple[int, int]] = []
        num_samples = sum(len(part) for part in _decode(path, sample_rate, fillings))
        if not num_samples:
            raise DataError(f"{path}: its audio has no samples; expected at least one")
        # Two frames of tolerance for what encoders trim; a truncated file lacks far more or sounds the same.
        if declared - num_samples / sample_rate > 0.05:
            raise DataError(
                f"{path}: truncated, has {num_samples / sample_rate:.2f} of {declared:.2f} seconds; copy it again"
            )
        if header_seconds - num_samples / sample_rate > 0.05:
            _logger.warning(
                "%s: its header says %.2f seconds, but it has %.2f; it may be truncated",
                path,
                header_seconds,
                num_samples / sample_rate,
            )
        return cls(
            path=path,
            sample_rate=sample_rate,
            num_samples=num_samples,
            source_rate=source_rate,
            num_channels=num_channels,
            codec=codec,
            fillings=tuple(fillings),
        )

    @property
    def conversion(self) -> str:
        """How channels are mixed and the rate is changed."""
        return CONVERSION

    @property
    def content_digest(self) -> str:
        """SHA-256 of the file's bytes; computed once per process while size and modification time are unchanged."""
        return digest_file(self.path)

    @property
    def duration_seconds(self) -> float:
        """Length of the signal in seconds."""
        return self.num_samples / self.sample_rate

    def read(self, start: int = 0, end: int | None = None) -> NDArray[np.float32]:
        """Decode samples `start` to `end` (exclusive; the file's end by default): float32 [end - start] in -1 to 1.

        Raises:
            DataError: The range is outside the signal, or can't be decoded.
        """
        return next(self.read_ranges([(start, self.num_samples if end is None else end)]))

    def read_ranges(self, ranges: Sequence[tuple[int, int]]) -> Iterator[NDArray[np.float32]]:
        """Decode several ranges in one pass over the file.

        Args:
            ranges: First sample and end (exclusive) of each, ascending and not overlapping.

        Yields:
            The samples of each range, float32 [end - first], in the order of the ranges.

        Raises:
            DataError: A range is outside the signal or before its predecessor, or can't be decoded.
        """
        previous_end = 0
        for start, end in ranges:
            if not previous_end <= start < end <= self.num_samples:
                raise DataError(
                    f"{self.path}: samples {start} to {end} requested, expected a range within {previous_end} to "
                    f"{self.num_samples}"
                )
            previous_end = end
        yield from self._cut(ranges)

    def _cut(self, ranges: Sequence[tuple[int, int]]) -> Iterator[NDArray[np.float32]]:
        """Collect the parts of the decoded signal that fall into the ranges."""
        parts = _decode(self.path, self.sample_rate)
        part, position = np.empty(0, np.float32), 0  # the current part and the index of its first sample
        for start, end in ranges:
            samples = np.empty(end - start, np.float32)
            filled = 0
            while filled < len(samples):
                offset = start + filled - position
                if offset >= len(part):
                    position += len(part)
                    fresh = next(parts, None)
                    if fresh is None:
                        raise DataError(f"{self.path}: it has become shorter since it was opened")
                    part = fresh
                    continue
                taken = part[offset : offset + len(samples) - filled]
                samples[filled : filled + len(taken)] = taken
                filled += len(taken)
            yield samples


def has_pictures(path: Path) -> bool:
    """Whether a file has a video besides any sound, or nothing but one.

    Raises:
        UsageError: There is no such file.
        DataError: It isn't a video or an audio file.
    """

    def choose(container: InputContainer) -> Any:
        return main_video_stream(container) or _main_stream(container)

    with open_stream(path, "a video or audio file", CONTAINER_NAMES | AUDIO_CONTAINER_NAMES, choose) as (_, stream):
        return isinstance(cast(object, stream), VideoStream)


def _open_audio(path: Path) -> AbstractContextManager[tuple[InputContainer, AudioStream]]:
    """Open the main audio stream of a file."""
    return open_stream(path, "an audio file", CONTAINER_NAMES | AUDIO_CONTAINER_NAMES, _main_stream)


def _main_stream(container: InputContainer) -> AudioStream | None:
    stream = container.streams.best("audio")
    return stream if isinstance(stream, AudioStream) else None


def _decode(
    path: Path, sample_rate: int, fillings: list[tuple[int, int]] | None = None
) -> Generator[NDArray[np.float32]]:
    """Yield the whole signal in order, in parts of any length; record in `fillings` what isn't in the file."""
    with _open_audio(path) as (container, stream):
        noted = [] if fillings is None else fillings
        lead = round(_seconds_behind_picture(container, stream) * sample_rate)
        if lead:
            noted.append((min(lead, 0), max(lead, 0)))
        position, num_cut = max(lead, 0), max(-lead, 0)
        yield from _silence(position)
        seconds = 0.0
        try:
            for is_gap, part in _parts(container, stream, sample_rate, path):
                if is_gap:
                    noted.append((position, position + len(part)))
                kept = part[num_cut:]
                num_cut -= len(part) - len(kept)
                position += len(kept)
                seconds += len(part) / sample_rate
                yield kept
        except (av.FFmpegError, ValueError) as error:
            raise DataError(f"{path}: damaged {seconds:.2f} seconds after its start ({reason_of(error)})") from error


def _parts(
    container: InputContainer, stream: AudioStream, sample_rate: int, path: Path
) -> Generator[tuple[bool, NDArray[np.float32]]]:
    """Yield the audio, and silence for gaps in the file's timestamps: whether it is a gap, and its samples."""
    converter = SampleConverter(path, sample_rate)
    end: Fraction | None = None
    num_decoded = 0
    for frame in container.decode(stream):
        if frame.is_corrupt:
            raise DataError(f"{path}: damaged {num_decoded / frame.sample_rate:.2f} seconds after its start")
        num_decoded += frame.samples
        start = None if frame.pts is None or frame.time_base is None else frame.pts * frame.time_base
        length = Fraction(frame.samples, frame.sample_rate)
        if start is not None and end is not None and frame.time_base is not None:
            gap = start - end
            if gap > max(2 * frame.time_base, length / 2):
                yield False, converter.finish()
                for silence in _silence(round(gap * sample_rate)):
                    yield True, silence
        end = None if start is None else start + length
        for part in converter.convert(frame):
            yield False, part
    yield False, converter.finish()


def _silence(num_samples: int) -> Iterator[NDArray[np.float32]]:
    for start in range(0, num_samples, SAMPLE_RATE):
        yield np.zeros(min(SAMPLE_RATE, num_samples - start), np.float32)


def _seconds_behind_picture(container: InputContainer, stream: AudioStream) -> Fraction:
    """Delay of the audio after the first frame; 0 if there is no video, or if the delay is only rounding."""
    picture = main_video_stream(container)
    times = [(some.start_time, some.time_base) for some in (stream, picture) if some is not None]
    known = [(start * base, base) for start, base in times if start is not None and base is not None]
    if len(known) < 2:
        return Fraction(0)
    (sound, sound_base), (shown, shown_base) = known
    return sound - shown if abs(sound - shown) > max(sound_base, shown_base) else Fraction(0)
