"""From samples to embeddings: what all families that hear share.

A checkpoint's feature extractor turns samples into mel frames, its tower turns those into rows. The extractor scales a
window by its loudest moment and cuts what is longer than its window; so a longer recording is divided evenly into the
smallest number of windows, at samples where the tower's attention ends too if it does. Nothing is omitted, no window is
too short for the tower, and nothing is decoded when the store already holds the embeddings.

Shape legend: M mel bins, T mel frames, N embedding rows, D hidden size.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mrsp_engine.embeddings.key import EmbeddingKey, encoder_fingerprint
from mrsp_engine.embeddings.reference import MediaReference
from mrsp_engine.embeddings.store import EmbeddingStore
from mrsp_engine.encoding.audio import AudioSource
from mrsp_engine.errors import EngineError, EngineUsageError, UnfitMediumError

__all__ = ["MEL_FRAMES_PER_ROW", "AudioEncoder", "rows_of"]

MEL_FRAMES_PER_ROW = 4
"""The second convolution and the pooling after the last layer halve time once each."""

LEAST_MEL_FRAMES = 3
"""Minimum number of mel frames; fewer give no row."""


class AudioEncoder(ABC):
    """Encodes audio with one checkpoint's feature extractor and tower.

    Args:
        parts: All modules whose weights affect an embedding; their fingerprint is part of every key.
        feature_extractor: The checkpoint's feature extractor.
        family: Name used in the key.
        samples_per_block: Samples after which the tower's attention ends, where recordings are divided.

    Attributes:
        joins_windows: Whether the rows of several windows are one medium, as if the extractor's window were longer.
    """

    joins_windows: ClassVar[bool] = False

    def __init__(self, parts: nn.Module, feature_extractor: Any, family: str, *, samples_per_block: int = 1) -> None:
        self.parts = parts
        self._extractor = feature_extractor
        self._family = family
        self._samples_per_block = samples_per_block
        self._settings = json.dumps(feature_extractor.to_dict(), sort_keys=True, default=str)
        self._frozen_fingerprint: str | None = None

    @abstractmethod
    def encode_features(self, features: Tensor, mel_frames: int) -> Tensor:
        """Rows [N, D] of one window's features [1, M, T], of which the first `mel_frames` are of the recording."""

    @property
    def sample_rate(self) -> int:
        """Samples per second that the encoder expects."""
        return int(self._extractor.sampling_rate)

    @property
    def window_samples(self) -> int:
        """Maximum number of samples of a window."""
        return int(self._extractor.n_samples)

    @property
    def least_samples(self) -> int:
        """Minimum number of samples that give a row."""
        return (LEAST_MEL_FRAMES - 1) * int(self._extractor.hop_length) + 1

    def plan_windows(self, num_samples: int) -> tuple[tuple[int, int], ...]:
        """Divide a signal evenly into the smallest number of windows: first sample and end of each."""
        block = self._samples_per_block
        num_blocks = -(-num_samples // block)
        count = -(-num_blocks // max(1, self.window_samples // block))
        bounds = [min(num_samples, num_blocks * place // count * block) for place in range(count + 1)]
        if count > 1 and bounds[-1] - bounds[-2] < self.least_samples:
            bounds[-2] -= block  # a last block of too few samples by itself
        return tuple(pairwise(bounds))

    def refer(
        self,
        audio: AudioSource,
        ranges: Sequence[tuple[int, int]],
        store: EmbeddingStore,
        *,
        modality: str = "audio",
    ) -> tuple[MediaReference, ...]:
        """Return references to the embeddings of the given ranges, encoding missing ones in one pass over the audio.

        Raises:
            EngineUsageError: The audio has another sample rate, or a range is outside it or too long for the tower.
            UnfitMediumError: A range is too short for the tower.
        """
        if audio.sample_rate != self.sample_rate:
            raise EngineUsageError(
                f"audio at {audio.sample_rate} samples per second: this checkpoint expects {self.sample_rate}; "
                "open the file with that sample_rate"
            )
        keys = [self._key(audio, start, end) for start, end in ranges]
        lacking = [place for place, key in enumerate(keys) if not store.contains(key)]
        if lacking:
            windows = {place: self._windows(*ranges[place]) for place in lacking}
            sounds = audio.read_ranges([window for place in lacking for window in windows[place]])
            for place in lacking:
                store.put(keys[place], self._encode(sounds, len(windows[place])))
        return tuple(
            self._reference(key, self._num_rows(start, end), modality)
            for key, (start, end) in zip(keys, ranges, strict=True)
        )

    def _windows(self, start: int, end: int) -> list[tuple[int, int]]:
        return [(start + first, start + last) for first, last in self.plan_windows(end - start)]

    def _num_rows(self, start: int, end: int) -> int:
        return sum(rows_of(self._mel_frames(last - first)) for first, last in self._windows(start, end))

    def _key(self, audio: AudioSource, start: int, end: int) -> EmbeddingKey:
        """Key of a range: samples correspond to a video's frames, the spectrogram to a frame's pixels."""
        if not 0 <= start < end <= audio.num_samples:
            raise EngineUsageError(
                f"samples {start} to {end}: expected a range within 0 to {audio.num_samples}; change the range"
            )
        if end - start < self.least_samples:
            raise UnfitMediumError(
                f"sound of {end - start} samples at {self.sample_rate} per second: expected {self.least_samples} or "
                "more, from which the audio tower makes a row; ask without it"
            )
        if end - start > self.window_samples and not self.joins_windows:
            raise EngineUsageError(
                f"a window of {end - start} samples: expected at most {self.window_samples}; change the range"
            )
        fillings = [place for filling in audio.fillings for place in filling]  # none in a file with complete audio
        return EmbeddingKey(
            content_digest=audio.content_digest,
            frame_indices=(start, end, *fillings),
            timestamps=(round(start / self.sample_rate * 1e6), round(end / self.sample_rate * 1e6)),
            height=int(self._extractor.feature_size),
            width=self._mel_frames(end - start),
            processor_digest=hashlib.sha256(f"{self._settings}{audio.conversion}".encode()).hexdigest(),
            encoder_fingerprint=self._fingerprint(),
            dtype=str(next(self.parts.parameters()).dtype).removeprefix("torch."),
            family=self._family,
        )

    def _reference(self, key: EmbeddingKey, num_rows: int, modality: str) -> MediaReference:
        seconds = MEL_FRAMES_PER_ROW * int(self._extractor.hop_length) / self.sample_rate
        return MediaReference(
            key=key.digest,
            grid_thw=(num_rows, 1, 1),
            seconds_per_grid=float(np.float32(seconds)),
            num_tokens=num_rows,
            modality=modality,
        )

    @torch.no_grad()
    def _encode(self, sounds: Iterator[NDArray[np.float32]], num_windows: int) -> Tensor:
        """Rows [N, D] of the next windows."""
        return torch.cat([self._encode_window(next(sounds)) for _ in range(num_windows)])

    def _encode_window(self, samples: NDArray[np.float32]) -> Tensor:
        inputs = self._extractor(
            samples,
            sampling_rate=self.sample_rate,
            padding="max_length",
            truncation=False,
            return_attention_mask=True,
            return_tensors="pt",
        )
        mel_frames, made = self._mel_frames(len(samples)), int(inputs["attention_mask"].sum())
        if made != mel_frames:
            raise EngineError(
                f"the feature extractor made {made} frames of {len(samples)} samples, expected {mel_frames}; check the "
                "checkpoint's preprocessor settings"
            )
        device = next(self.parts.parameters()).device
        rows = self.encode_features(inputs["input_features"].to(device), mel_frames)
        if len(rows) != rows_of(mel_frames):
            raise EngineError(
                f"the audio tower made {len(rows)} rows of {mel_frames} frames, expected {rows_of(mel_frames)}; check "
                "the checkpoint's configuration"
            )
        return rows.cpu()

    def _mel_frames(self, num_samples: int) -> int:
        return -(-num_samples // int(self._extractor.hop_length))

    def _fingerprint(self) -> str:
        """Fingerprint of the encoder's current weights; cached only while they aren't trained."""
        if any(parameter.requires_grad for parameter in self.parts.parameters()):
            self._frozen_fingerprint = None
            return encoder_fingerprint(self.parts)
        if self._frozen_fingerprint is None:
            self._frozen_fingerprint = encoder_fingerprint(self.parts)
        return self._frozen_fingerprint


def rows_of(mel_frames: int) -> int:
    """Number of rows that a tower of the Whisper kind with pooling makes of mel frames."""
    return ((mel_frames - 1) // 2 + 1 - 2) // 2 + 1
