"""A real Qwen2.5-VL checkpoint of a few million parameters, built on demand.

Machines without downloaded weights still need a model that every real component accepts: transformers and vLLM load the
folder unchanged, the tokenizer is a byte-level BPE trained on the caller's texts, and the randomly initialised vision
tower is calibrated so that its output is informative for the language model. The bytes of the folder depend only on the
arguments. The module does not depend on the subject of the texts or on how the model will be trained.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

from mrsp_engine.errors import EngineUsageError
from mrsp_engine.families.checkpoints import require_empty, write_checkpoint
from mrsp_engine.tiny.language import MINIMUM_HEAD_SIZE, generation_config
from mrsp_engine.tiny.tokenizer import (
    CHAT_TEMPLATE,
    DEFAULT_SYSTEM,
    END_OF_TEXT,
    END_OF_TURN,
    SPECIAL_TOKENS,
    train_tokenizer,
)
from mrsp_engine.tiny.vision import calibrate_vision, patches_of_pictures, patches_of_videos

__all__ = ["CHAT_TEMPLATE", "DEFAULT_SYSTEM", "create_tiny_qwen2_5_vl"]

PATCH_SIZE = 14
MERGE_SIZE = 2
TEMPORAL_PATCH_SIZE = 2
WINDOW_SIZE = 112
TOKENS_PER_SECOND = 1
MERGED_PATCH_SIZE = PATCH_SIZE * MERGE_SIZE


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sizes:
    """The dimensions of both networks, checked once."""

    hidden_size: int
    num_layers: int
    num_heads: int
    num_key_value_heads: int
    intermediate_size: int
    vision_hidden_size: int
    vision_num_heads: int
    vision_depth: int
    max_position_embeddings: int

    def __post_init__(self) -> None:
        for name in ("hidden_size", "vision_hidden_size"):
            heads_name = "num_heads" if name == "hidden_size" else "vision_num_heads"
            width, num_heads = getattr(self, name), getattr(self, heads_name)
            if width % num_heads or (width // num_heads) % 8:
                raise EngineUsageError(
                    f"{name}={width} with {heads_name}={num_heads}: the head size must be a multiple of 8; "
                    f"change {name} or {heads_name}"
                )
        if self.head_size < MINIMUM_HEAD_SIZE:
            raise EngineUsageError(
                f"hidden_size={self.hidden_size} with num_heads={self.num_heads}: head size {self.head_size}, "
                f"expected {MINIMUM_HEAD_SIZE} or more; change hidden_size or num_heads"
            )
        if self.num_heads % self.num_key_value_heads:
            raise EngineUsageError(
                f"num_key_value_heads={self.num_key_value_heads}: must divide num_heads={self.num_heads}; "
                "change num_key_value_heads"
            )

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def rotary_sections(self) -> list[int]:
        """Rotary pairs for time, height and width; half are for time, so that a small head can distinguish times."""
        num_pairs = self.head_size // 2
        spatial = num_pairs // 4
        return [num_pairs - 2 * spatial, spatial, spatial]


def create_tiny_qwen2_5_vl(
    folder: Path,
    *,
    corpus: Iterable[str],
    seed: int = 0,
    hidden_size: int = 192,
    num_layers: int = 4,
    num_heads: int = 6,
    num_key_value_heads: int = 2,
    intermediate_size: int = 512,
    vocabulary_size: int = 1024,
    vision_hidden_size: int = 128,
    vision_num_heads: int = 4,
    vision_depth: int = 2,
    frame_pixels: int = 112 * 112,
    max_position_embeddings: int = 32768,
    initializer_range: float = 0.02,
    vision_token_scale: float = 0.3,
    calibration_videos: Sequence[NDArray[np.uint8]] = (),
) -> None:
    """Write a complete, randomly initialised Qwen2.5-VL checkpoint in the ordinary Hugging Face layout.

    Args:
        folder: The output folder; it must not exist or be empty.
        corpus: Texts on which the tokenizer is trained (prompts and answers like those the model will see).
        seed: Seed of the weights.
        hidden_size: Width of the language model.
        num_layers: Its number of layers.
        num_heads: Its query heads; the head size must be 32 or more.
        num_key_value_heads: Its key heads.
        intermediate_size: Width of its feed-forward layers.
        vocabulary_size: Upper bound of the number of tokens, special ones included; a small corpus needs fewer.
        vision_hidden_size: Width of the vision tower.
        vision_num_heads: Its heads.
        vision_depth: Its number of blocks.
        frame_pixels: Largest frame, in pixels, that isn't shrunk.
        max_position_embeddings: Longest sequence that the configuration allows.
        initializer_range: Standard deviation of the language model's weights.
        vision_token_scale: Root mean square of the merged vision tokens.
        calibration_videos: Frames like those the model will see, uint8 [F, H, W, 3] each; without any, varied images
            are drawn. The frozen tower's output is centred and whitened over them.

    Raises:
        EngineUsageError: The sizes are inconsistent or the folder isn't empty.
        EngineError: The folder can't be written.
    """
    sizes = _Sizes(
        hidden_size=hidden_size,
        num_layers=num_layers,
        num_heads=num_heads,
        num_key_value_heads=num_key_value_heads,
        intermediate_size=intermediate_size,
        vision_hidden_size=vision_hidden_size,
        vision_num_heads=vision_num_heads,
        vision_depth=vision_depth,
        max_position_embeddings=max_position_embeddings,
    )
    require_empty(folder)
    if frame_pixels < MERGED_PATCH_SIZE**2:
        raise EngineUsageError(f"frame_pixels={frame_pixels}: expected {MERGED_PATCH_SIZE**2} or more")
    tokenizer = train_tokenizer(corpus, vocabulary_size, max_position_embeddings)
    processor = _create_processor(tokenizer, frame_pixels)
    config = _create_config(sizes, tokenizer, initializer_range)
    model = _create_model(config, seed, vision_token_scale, processor.video_processor, calibration_videos)

    def write(temporary: Path) -> None:
        model.save_pretrained(temporary)
        processor.save_pretrained(temporary)

    write_checkpoint(folder, write)


def _create_config(sizes: _Sizes, tokenizer: Qwen2Tokenizer, initializer_range: float) -> Qwen2_5_VLConfig:
    ids = {token: cast(int, tokenizer.convert_tokens_to_ids(token)) for token in SPECIAL_TOKENS}
    text: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": sizes.hidden_size,
        "intermediate_size": sizes.intermediate_size,
        "num_hidden_layers": sizes.num_layers,
        "num_attention_heads": sizes.num_heads,
        "num_key_value_heads": sizes.num_key_value_heads,
        "max_position_embeddings": sizes.max_position_embeddings,
        "max_window_layers": sizes.num_layers,
        "initializer_range": initializer_range,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10_000.0,
            "mrope_section": sizes.rotary_sections,
        },
        "bos_token_id": ids[END_OF_TEXT],
        "eos_token_id": ids[END_OF_TURN],
        "pad_token_id": ids[END_OF_TEXT],
        "tie_word_embeddings": True,
    }
    vision: dict[str, Any] = {
        "depth": sizes.vision_depth,
        "hidden_size": sizes.vision_hidden_size,
        "intermediate_size": 2 * sizes.vision_hidden_size,
        "num_heads": sizes.vision_num_heads,
        "patch_size": PATCH_SIZE,
        "spatial_merge_size": MERGE_SIZE,
        "temporal_patch_size": TEMPORAL_PATCH_SIZE,
        "tokens_per_second": TOKENS_PER_SECOND,
        "window_size": WINDOW_SIZE,
        "fullatt_block_indexes": [sizes.vision_depth - 1],
        "out_hidden_size": sizes.hidden_size,
    }
    return Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
        dtype="float32",
    )


def _create_model(
    config: Qwen2_5_VLConfig,
    seed: int,
    vision_token_scale: float,
    video_processor: Qwen2VLVideoProcessor,
    calibration_videos: Sequence[NDArray[np.uint8]],
) -> Qwen2_5_VLForConditionalGeneration:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2_5_VLForConditionalGeneration(config)
        patches_SP, grid_thw = (
            patches_of_videos(video_processor, calibration_videos)
            if calibration_videos
            else patches_of_pictures(config.vision_config)
        )
        calibrate_vision(model.model.visual, vision_token_scale, patches_SP, grid_thw)
    model.generation_config = generation_config(cast(Any, config.text_config))
    return model


def _create_processor(tokenizer: Qwen2Tokenizer, frame_pixels: int) -> Qwen2_5_VLProcessor:
    size = {"shortest_edge": MERGED_PATCH_SIZE**2, "longest_edge": frame_pixels}
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=dict(size)),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(size=dict(size), cap_pixels_per_frame=False),
        chat_template=CHAT_TEMPLATE,
    )
