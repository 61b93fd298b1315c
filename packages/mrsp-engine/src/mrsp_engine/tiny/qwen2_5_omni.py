"""Tiny random Qwen2.5-Omni checkpoints in the layout of the published ones, with the parts that speak.

Towers are random. In the one for tests they are only scaled so that media affect the output; in the other they are
calibrated, so that the thinker can learn from frozen towers.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import (
    Qwen2_5OmniConfig,
    Qwen2_5OmniForConditionalGeneration,
)

from mrsp_engine.families.checkpoints import require_empty, write_checkpoint
from mrsp_engine.tiny.hearing import calibrate_hearing
from mrsp_engine.tiny.language import LanguageSizes
from mrsp_engine.tiny.published.files import PublishedTokenizer
from mrsp_engine.tiny.published.qwen2_5_omni import (
    ThinkerTowers,
    create_omni_processors,
    create_omni_tokenizer,
    omni_config,
    write_omni_files,
)
from mrsp_engine.tiny.qwen_vl import TINY_SIZES
from mrsp_engine.tiny.vision import calibrate_vision, make_vision_matter, patches_of_pictures, patches_of_videos

__all__ = ["create_tiny_qwen2_5_omni", "create_trainable_qwen2_5_omni"]


def create_tiny_qwen2_5_omni(folder: Path, seed: int = 0, sizes: LanguageSizes = TINY_SIZES) -> None:
    """Write a Qwen2.5-Omni checkpoint; see `mrsp_engine.tiny.families.build_tiny`."""
    require_empty(folder)

    def adjust(thinker: Any) -> None:
        make_vision_matter([thinker.visual.merger, thinker.audio_tower.proj])

    _write(folder, create_omni_tokenizer(), sizes, ThinkerTowers(), seed, adjust)


def create_trainable_qwen2_5_omni(
    folder: Path,
    *,
    corpus: Iterable[str],
    sizes: LanguageSizes,
    towers: ThinkerTowers,
    seed: int = 0,
    vision_token_scale: float = 0.3,
    audio_token_scale: float = 0.3,
    calibration_videos: Sequence[NDArray[np.uint8]] = (),
) -> None:
    """Write a Qwen2.5-Omni checkpoint whose thinker can learn to see and to hear while its towers stay frozen.

    Args:
        folder: The output folder; it must not exist or be empty.
        corpus: Texts on which the tokenizer is trained (prompts and answers like those the model will see).
        sizes: Dimensions of the language model.
        towers: Dimensions of its towers.
        seed: Seed of the weights.
        vision_token_scale: Root mean square of the merged vision tokens.
        audio_token_scale: Root mean square of the rows of sound.
        calibration_videos: Frames like those the model will see, uint8 [F, H, W, 3] each; without any, varied images
            are drawn. Sounds are always varied ones that are made here.

    Raises:
        EngineUsageError: The folder isn't empty.
        EngineError: The folder can't be written.
    """
    require_empty(folder)
    videos, extractor = create_omni_processors(towers)

    def adjust(thinker: Any) -> None:
        patches_SP, grid_thw = (
            patches_of_videos(videos, calibration_videos)
            if calibration_videos
            else patches_of_pictures(thinker.config.vision_config)
        )
        calibrate_vision(thinker.visual, vision_token_scale, patches_SP, grid_thw)
        calibrate_hearing(thinker.audio_tower, audio_token_scale, extractor)

    _write(folder, create_omni_tokenizer(corpus, sizes.vocabulary_size), sizes, towers, seed, adjust)


def _write(
    folder: Path,
    tokenizer: PublishedTokenizer,
    sizes: LanguageSizes,
    towers: ThinkerTowers,
    seed: int,
    adjust: Callable[[Any], None],
) -> None:
    config = omni_config(tokenizer, sizes, towers)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = Qwen2_5OmniForConditionalGeneration(Qwen2_5OmniConfig(**config))
        adjust(model.thinker)
    weights = {name: weight.contiguous() for name, weight in model.state_dict().items()}
    write_checkpoint(
        folder, partial(write_omni_files, tokenizer=tokenizer, config=config, towers=towers, weights=weights)
    )
