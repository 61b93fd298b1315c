"""Tiny random checkpoints of Qwen3.5, with linear layers around one of softmax attention.

Linear heads have 64 channels, the fewest of vLLM's kernel on CPUs, which computes in bfloat16 only. By default one key
head serves three value heads, which two ranks can't share evenly, and of which four ranks leave one without any.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import (
    Qwen2VLImageProcessor,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
    Qwen3_5MoeConfig,
    Qwen3_5MoeForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from mrsp_engine.families.checkpoints import require_empty
from mrsp_engine.tiny.language import LanguageSizes, language_settings
from mrsp_engine.tiny.qwen_vl import (
    CORPUS,
    EXPERTS_PER_TOKEN,
    MERGE_SIZE,
    NUM_EXPERTS,
    PATCH_SIZE,
    TINY_SIZES,
    TOWER_HEADS,
    TOWER_SETTINGS,
    shared_settings,
    write_vision_model,
)
from mrsp_engine.tiny.tokenizer import CHAT_TEMPLATE, train_tokenizer

__all__ = ["LinearSizes", "create_tiny_qwen3_5", "create_tiny_qwen3_5_moe"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearSizes:
    """Dimensions of the linear layers.

    Attributes:
        num_key_heads: Key heads; each serves an equal number of value heads.
        num_value_heads: Value heads.
        channels: Channels of every head; 64 or 128 for vLLM on CPUs.
        kernel: Width of the convolution.
        interval: Every layer whose number is a multiple of it has softmax attention.
    """

    num_key_heads: int = 1
    num_value_heads: int = 3
    channels: int = 64
    kernel: int = 4
    interval: int = 2


def create_tiny_qwen3_5(
    folder: Path, seed: int = 0, sizes: LanguageSizes = TINY_SIZES, *, linear: LinearSizes | None = None
) -> None:
    """Write a Qwen3.5 checkpoint; see `mrsp_engine.tiny.families.build_tiny`."""
    _create(folder, seed, sizes, linear or LinearSizes(), Qwen3_5Config, Qwen3_5ForConditionalGeneration, {})


def create_tiny_qwen3_5_moe(folder: Path, seed: int = 0, sizes: LanguageSizes = TINY_SIZES) -> None:
    """Write a Qwen3.5 checkpoint with experts in every layer, one of them used for every token; see `build_tiny`."""
    experts = {
        "num_experts": NUM_EXPERTS,
        "num_experts_per_tok": EXPERTS_PER_TOKEN,
        "moe_intermediate_size": sizes.intermediate_size // 2,
        "shared_expert_intermediate_size": sizes.intermediate_size // 2,
    }
    _create(folder, seed, sizes, LinearSizes(), Qwen3_5MoeConfig, Qwen3_5MoeForConditionalGeneration, experts)


def _create(
    folder: Path,
    seed: int,
    sizes: LanguageSizes,
    linear: LinearSizes,
    config_class: Any,
    model_class: Any,
    experts: Mapping[str, int],
) -> None:
    require_empty(folder)
    tokenizer = train_tokenizer(CORPUS, sizes.vocabulary_size, sizes.max_position_embeddings)
    text: dict[str, Any] = {
        **language_settings(sizes, tokenizer),
        "head_dim": sizes.head_size,
        "layer_types": [
            "linear_attention" if (layer + 1) % linear.interval else "full_attention"
            for layer in range(sizes.num_layers)
        ],
        "linear_num_key_heads": linear.num_key_heads,
        "linear_num_value_heads": linear.num_value_heads,
        "linear_key_head_dim": linear.channels,
        "linear_value_head_dim": linear.channels,
        "linear_conv_kernel_dim": linear.kernel,
        "mamba_ssm_dtype": "float32",  # of the states in vLLM, as published
        "tie_word_embeddings": not experts,
        **experts,
    }
    del text["max_window_layers"]
    pairs = sizes.head_size // 4  # half of a head's channels are rotated
    text["rope_parameters"] |= {
        "mrope_section": [pairs - 2 * (pairs // 4), pairs // 4, pairs // 4],
        "mrope_interleaved": True,
        "partial_rotary_factor": 0.5,
    }
    tower = {
        **TOWER_SETTINGS,
        "depth": 3,
        "num_heads": TOWER_HEADS,
        "patch_size": PATCH_SIZE,
        "spatial_merge_size": MERGE_SIZE,
        "num_position_embeddings": 64,
        "out_hidden_size": sizes.hidden_size,
    }
    shared = shared_settings(tokenizer) | {"tie_word_embeddings": not experts}
    config = config_class(text_config=text, vision_config=tower, **shared)
    unit = (PATCH_SIZE * MERGE_SIZE) ** 2
    processor = Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(
            size={"shortest_edge": unit, "longest_edge": 16 * unit}, patch_size=PATCH_SIZE, merge_size=MERGE_SIZE
        ),
        tokenizer=tokenizer,
        video_processor=Qwen3VLVideoProcessor(
            size={"shortest_edge": unit, "longest_edge": 24576 * unit}, cap_pixels_per_frame=False
        ),
        chat_template=CHAT_TEMPLATE,
    )
    write_vision_model(folder, seed, model_class, config, processor, adjust=_remember, save=_save_stacked)


def _save_stacked(model: Any, folder: Path) -> None:
    """Write the experts of a layer in one tensor, as in published checkpoints; transformers writes each by itself."""
    model.save_pretrained(folder)
    weights = {name: weight.contiguous() for name, weight in model.state_dict().items()}
    if model.config.text_config.tie_word_embeddings:
        del weights["lm_head.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _remember(model: Any) -> None:
    """Give states a memory of tens of tokens; with transformers' initial weights most are forgotten within one."""
    with torch.no_grad():
        for layer in model.model.language_model.layers:
            if layer.block_type == "linear_attention":
                layer.linear_attn.A_log.uniform_(math.log(0.01), math.log(0.1))
