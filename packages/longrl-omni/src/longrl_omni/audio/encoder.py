"""Qwen2-Audio's tower: one window at a time, each a medium of its own.

Shape legend: M mel bins, T mel frames, N embedding rows, D hidden size.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.masking_utils import create_bidirectional_mask

from mrsp_engine.encoding.audio_encoder import AudioEncoder, rows_of

__all__ = ["Qwen2AudioEncoder"]


class Qwen2AudioEncoder(AudioEncoder):
    """Encodes audio with one checkpoint's feature extractor, tower and projector.

    Args:
        model: The Hugging Face model.
        feature_extractor: The checkpoint's feature extractor.
        family: Name used in the key.
    """

    def __init__(self, model: Any, feature_extractor: Any, family: str) -> None:
        self._tower = model.model.audio_tower
        self._projector = model.model.multi_modal_projector
        parts = nn.ModuleDict({"audio_tower": self._tower, "multi_modal_projector": self._projector})
        super().__init__(parts, feature_extractor, family)

    def encode_features(self, features: Tensor, mel_frames: int) -> Tensor:
        """See `AudioEncoder.encode_features`."""
        output = self._tower(features, attention_mask=self._mask(mel_frames, features.shape[-1]))
        rows: Tensor = self._projector(output.last_hidden_state)[0, : rows_of(mel_frames)]
        return rows

    def _mask(self, mel_frames: int, padded_frames: int) -> Tensor | None:
        """Prevent the layers, which run at half the rate, from attending to the padding after the audio."""
        length = (mel_frames - 1) // 2 + 1
        width = (padded_frames - 1) // 2 + 1
        dummy = torch.empty((1, width, 1), dtype=self._tower.dtype, device=self._tower.device)
        is_sound = (torch.arange(width, device=dummy.device) < length).long()[None]
        return create_bidirectional_mask(config=self._tower.config, inputs_embeds=dummy, attention_mask=is_sound)
