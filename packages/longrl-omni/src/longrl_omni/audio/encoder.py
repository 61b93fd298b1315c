"""From samples to embeddings, with the checkpoint's own feature extractor and audio tower.

The tower encodes one window at a time (30 seconds in the published checkpoints). A longer recording is divided evenly
into the smallest number of windows, each a medium of its own; nothing is omitted and no window is too short for the
tower. Nothing is decoded when the store already holds the embeddings.

Shape legend: M mel bins, T mel frames, N embedding rows, D hidden size.
"""

import hashlib
import json
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers.masking_utils import create_bidirectional_mask

from longrl_omni.audio.audio_file import AudioSource
from mrsp_engine.embeddings.key import EmbeddingKey, encoder_fingerprint
from mrsp_engine.embeddings.reference import MediaReference
from mrsp_engine.embeddings.store import EmbeddingStore
from mrsp_engine.errors import EngineError, EngineUsageError

MEL_FRAMES_PER_TOKEN = 4
"""The second convolution and the pooling after the last layer halve time once each."""

LEAST_MEL_FRAMES = 3
"""Minimum number of mel frames; fewer give no token."""


class AudioEncoder:
    """Encodes audio with one checkpoint's feature extractor, tower and projector.

    Args:
        model: The Hugging Face model.
        feature_extractor: The checkpoint's feature extractor.
        family: Name used in the key.
    """

    def __init__(self, model: Any, feature_extractor: Any, family: str) -> None:
        self._tower = model.model.audio_tower
        self._projector = model.model.multi_modal_projector
        self.parts = nn.ModuleDict({"audio_tower": self._tower, "multi_modal_projector": self._projector})
        self._extractor = feature_extractor
        self._family = family
        settings = json.dumps(feature_extractor.to_dict(), sort_keys=True, default=str)
        self._processor_digest = hashlib.sha256(settings.encode()).hexdigest()
        self._frozen_fingerprint: str | None = None

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
        """Minimum number of samples that give a token."""
        return (LEAST_MEL_FRAMES - 1) * int(self._extractor.hop_length) + 1

    def plan_windows(self, num_samples: int) -> tuple[tuple[int, int], ...]:
        """Divide a signal evenly into the smallest number of windows: first sample and end of each."""
        count = -(-num_samples // self.window_samples)
        bounds = [num_samples * place // count for place in range(count + 1)]
        return tuple(pairwise(bounds))

    def refer(
        self, audio: AudioSource, windows: Sequence[tuple[int, int]], store: EmbeddingStore
    ) -> tuple[MediaReference, ...]:
        """Return references to the embeddings of the given windows, encoding missing ones in one pass over the audio.

        Raises:
            EngineUsageError: The audio has another sample rate, or a window is too short or too long for the tower.
        """
        if audio.sample_rate != self.sample_rate:
            raise EngineUsageError(
                f"audio at {audio.sample_rate} samples per second: this checkpoint expects {self.sample_rate}; "
                "open the file with that sample_rate"
            )
        keys = [self._key(audio, start, end) for start, end in windows]
        lacking = [place for place, key in enumerate(keys) if not store.contains(key)]
        if lacking:
            sounds = audio.read_ranges([windows[place] for place in lacking])
            for place, samples in zip(lacking, sounds, strict=True):
                store.put(keys[place], self._encode(samples))
        return tuple(self._reference(key) for key in keys)

    def _key(self, audio: AudioSource, start: int, end: int) -> EmbeddingKey:
        """Key of one window: samples correspond to a video's frames, the spectrogram to a frame's pixels."""
        if not 0 <= start < end <= audio.num_samples:
            raise EngineUsageError(
                f"samples {start} to {end}: expected a range within 0 to {audio.num_samples}; change the range"
            )
        if not self.least_samples <= end - start <= self.window_samples:
            raise EngineUsageError(
                f"a window of {end - start} samples: expected {self.least_samples} to {self.window_samples}; "
                "change the range"
            )
        fillings = [place for filling in audio.fillings for place in filling]  # none in a file with complete audio
        return EmbeddingKey(
            content_digest=audio.content_digest,
            frame_indices=(start, end, *fillings),
            timestamps=(round(start / self.sample_rate * 1e6), round(end / self.sample_rate * 1e6)),
            height=int(self._extractor.feature_size),
            width=self._mel_frames(end - start),
            processor_digest=self._processor_digest,
            encoder_fingerprint=self._fingerprint(),
            dtype=str(self._tower.dtype).removeprefix("torch."),
            family=self._family,
        )

    def _reference(self, key: EmbeddingKey) -> MediaReference:
        num_tokens = _tokens_of(key.width)
        seconds = MEL_FRAMES_PER_TOKEN * int(self._extractor.hop_length) / self.sample_rate
        return MediaReference(
            key=key.digest,
            grid_thw=(num_tokens, 1, 1),
            seconds_per_grid=float(np.float32(seconds)),
            num_tokens=num_tokens,
            modality="audio",
        )

    @torch.no_grad()
    def _encode(self, samples: NDArray[np.float32]) -> Tensor:
        """Embeddings [N, D] of one window."""
        inputs = self._extractor(
            samples,
            sampling_rate=self.sample_rate,
            padding="max_length",
            truncation=False,
            return_attention_mask=True,
            return_tensors="pt",
        )
        mel_frames = self._mel_frames(len(samples))
        if int(inputs["attention_mask"].sum()) != mel_frames:
            raise EngineError(
                f"the feature extractor made {int(inputs['attention_mask'].sum())} frames of {len(samples)} samples, "
                f"expected {mel_frames}; check the checkpoint's preprocessor settings"
            )
        features = inputs["input_features"].to(self._tower.device)  # [1, M, T]
        output = self._tower(features, attention_mask=self._mask(mel_frames, features.shape[-1]))
        embedding: Tensor = self._projector(output.last_hidden_state)[0, : _tokens_of(mel_frames)]
        return embedding.cpu()

    def _mask(self, mel_frames: int, padded_frames: int) -> Tensor | None:
        """Prevent the layers, which run at half the rate, from attending to the padding after the audio."""
        length = (mel_frames - 1) // 2 + 1
        width = (padded_frames - 1) // 2 + 1
        dummy = torch.empty((1, width, 1), dtype=self._tower.dtype, device=self._tower.device)
        is_sound = (torch.arange(width, device=dummy.device) < length).long()[None]
        return create_bidirectional_mask(config=self._tower.config, inputs_embeds=dummy, attention_mask=is_sound)

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


def _tokens_of(mel_frames: int) -> int:
    return ((mel_frames - 1) // 2 + 1 - 2) // 2 + 1
