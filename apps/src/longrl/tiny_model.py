"""Settings of the tiny model, which the engine builds. Imports nothing heavy, for the command line's help."""

from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field


class TinyModelSettings(BaseModel):
    """Sizes of a Qwen2.5-VL, or a Qwen2.5-Omni, that a laptop can train in minutes."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    hidden_size: int = Field(default=192, ge=1)
    """Width of the language model."""
    num_layers: int = Field(default=4, ge=1)
    """Layers of the language model."""
    num_heads: int = Field(default=6, ge=1)
    """Query heads; hidden_size / num_heads must be 32 or more."""
    num_key_value_heads: int = Field(default=2, ge=1)
    """Key and value heads."""
    intermediate_size: int = Field(default=512, ge=1)
    """Width of the feed-forward layers."""
    vocabulary_size: int = Field(default=1024, ge=300)
    """Upper bound of the number of tokens."""
    vision_hidden_size: int = Field(default=128, ge=1)
    """Width of the vision tower."""
    vision_num_heads: int = Field(default=4, ge=1)
    """Heads of the vision tower."""
    vision_depth: int = Field(default=2, ge=1)
    """Blocks of the vision tower."""
    frame_pixels: int = Field(default=112 * 112, ge=28 * 28)
    """Larger frames are shrunk to this many pixels."""
    max_position_embeddings: int = Field(default=32768, ge=1024)
    """Maximum tokens of a sequence."""
    initializer_range: float = Field(default=0.02, gt=0)
    """Standard deviation of the language model's initial weights."""
    vision_token_scale: float = Field(default=0.3, gt=0)
    """Size of the vision tower's tokens (root mean square)."""
    audio_hidden_size: int | None = Field(default=None, ge=1)
    """Width of the audio tower; with it the model is a Qwen2.5-Omni, which also hears."""
    audio_num_heads: int = Field(default=2, ge=1)
    """Heads of the audio tower."""
    audio_depth: int = Field(default=2, ge=1)
    """Layers of the audio tower."""
    audio_token_scale: float = Field(default=0.3, gt=0)
    """Size of the audio tower's rows (root mean square)."""

    @property
    def hears(self) -> bool:
        """Whether it is a Qwen2.5-Omni."""
        return self.audio_hidden_size is not None


def build_tiny_model(
    folder: Path,
    corpus: Iterable[str],
    settings: TinyModelSettings,
    *,
    seed: int,
    calibration_videos: Sequence[NDArray[np.uint8]] = (),
) -> None:
    """Write the checkpoint, with its vision tower calibrated on the given frames (uint8 [F, H, W, 3] each)."""
    from mrsp_engine.families.checkpoints import without_progress_bars, without_reports
    from mrsp_engine.tiny.language import LanguageSizes
    from mrsp_engine.tiny.published.qwen2_5_omni import ThinkerTowers
    from mrsp_engine.tiny.qwen2_5_omni import create_trainable_qwen2_5_omni
    from mrsp_engine.tiny.qwen2_5_vl import create_tiny_qwen2_5_vl

    values = settings.model_dump()
    with without_progress_bars(), without_reports():
        if settings.hears:
            create_trainable_qwen2_5_omni(
                folder,
                corpus=corpus,
                sizes=LanguageSizes(**{name: values[name] for name in _names_of(LanguageSizes)}),
                towers=ThinkerTowers(**{name: values[name] for name in _names_of(ThinkerTowers) & values.keys()}),
                seed=seed,
                vision_token_scale=settings.vision_token_scale,
                audio_token_scale=settings.audio_token_scale,
                calibration_videos=calibration_videos,
            )
            return
        sizes = {name: value for name, value in values.items() if not name.startswith("audio_")}
        create_tiny_qwen2_5_vl(folder, corpus=corpus, seed=seed, calibration_videos=calibration_videos, **sizes)


def _names_of(kind: Any) -> set[str]:
    return {field.name for field in fields(kind)}
