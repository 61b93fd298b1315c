"""Tiny random checkpoints of Qwen2-VL and Qwen3-VL, the latter with and without experts.

Their vision tower is random and only scaled so that it affects the output; `mrsp_engine.tiny.qwen2_5_vl` builds one
that can learn.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import (
    Qwen2Tokenizer,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from mrsp_engine.families.checkpoints import require_empty, write_checkpoint
from mrsp_engine.families.qwen.qwen3_vl_moe import save_with_experts
from mrsp_engine.tiny.language import LanguageSizes, generation_config, language_settings
from mrsp_engine.tiny.tokenizer import CHAT_TEMPLATE, train_tokenizer
from mrsp_engine.tiny.vision import make_vision_matter

__all__ = [
    "CORPUS",
    "TINY_SIZES",
    "create_tiny_qwen2_vl",
    "create_tiny_qwen3_vl",
    "create_tiny_qwen3_vl_moe",
    "shared_settings",
    "write_vision_model",
]

CORPUS = (
    "Which shape left first?",
    "The red circle met the blue square at 00:12.",
    "A. red\nB. blue\nC. green\nD. none",
    "<0.5 seconds><12.5 seconds>",
)
TINY_SIZES = LanguageSizes(
    hidden_size=96, num_layers=3, num_heads=3, num_key_value_heads=1, intermediate_size=128, vocabulary_size=512
)

PATCH_SIZE = 16
MERGE_SIZE = 2
TOWER_SETTINGS: Mapping[str, Any] = {"hidden_size": 64, "intermediate_size": 128}
TOWER_HEADS = 2
QWEN2_PATCH_SIZE = 14
NUM_EXPERTS, EXPERTS_PER_TOKEN = 4, 2


def create_tiny_qwen2_vl(folder: Path, seed: int = 0, sizes: LanguageSizes = TINY_SIZES) -> None:
    """Write a Qwen2-VL checkpoint; see `mrsp_engine.tiny.families.build_tiny`."""
    require_empty(folder)
    tokenizer = train_tokenizer(CORPUS, sizes.vocabulary_size, sizes.max_position_embeddings)
    text = language_settings(sizes, tokenizer)
    text["rope_parameters"]["mrope_section"] = _rotary_sections(sizes)
    tower = {
        "depth": 3,
        "embed_dim": TOWER_SETTINGS["hidden_size"],
        "num_heads": TOWER_HEADS,
        "mlp_ratio": 2,
        "hidden_size": sizes.hidden_size,
        "patch_size": QWEN2_PATCH_SIZE,
        "spatial_merge_size": MERGE_SIZE,
    }
    config = Qwen2VLConfig(text_config=text, vision_config=tower, **shared_settings(tokenizer))
    unit = (QWEN2_PATCH_SIZE * MERGE_SIZE) ** 2
    size = {"shortest_edge": unit, "longest_edge": 16 * unit}
    processor = Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=dict(size)),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(size=dict(size), cap_pixels_per_frame=False),
        chat_template=CHAT_TEMPLATE,
    )
    write_vision_model(folder, seed, Qwen2VLForConditionalGeneration, config, processor)


def create_tiny_qwen3_vl(
    folder: Path, seed: int = 0, sizes: LanguageSizes = TINY_SIZES, *, is_tied: bool = True
) -> None:
    """Write a Qwen3-VL checkpoint with two DeepStack levels, and with a tied or a separate head."""
    _create_qwen3_vl(folder, seed, sizes, Qwen3VLConfig, Qwen3VLForConditionalGeneration, {}, is_tied=is_tied)


def create_tiny_qwen3_vl_moe(folder: Path, seed: int = 0, sizes: LanguageSizes = TINY_SIZES) -> None:
    """Write a Qwen3-VL checkpoint with experts in every layer; see `mrsp_engine.tiny.families.build_tiny`."""
    experts = {
        "num_experts": NUM_EXPERTS,
        "num_experts_per_tok": EXPERTS_PER_TOKEN,
        "moe_intermediate_size": sizes.intermediate_size // 2,
        "norm_topk_prob": True,  # as published; transformers assumes it, vLLM reads it
    }
    _create_qwen3_vl(folder, seed, sizes, Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration, experts, is_tied=False)


def _create_qwen3_vl(
    folder: Path,
    seed: int,
    sizes: LanguageSizes,
    config_class: Any,
    model_class: Any,
    experts: Mapping[str, int],
    *,
    is_tied: bool,
) -> None:
    require_empty(folder)
    tokenizer = train_tokenizer(CORPUS, sizes.vocabulary_size, sizes.max_position_embeddings)
    text: dict[str, Any] = {**language_settings(sizes, tokenizer), "head_dim": sizes.head_size, **experts}
    text["rope_parameters"] |= {"mrope_section": _rotary_sections(sizes), "mrope_interleaved": True}
    tower = {
        **TOWER_SETTINGS,
        "depth": 3,
        "num_heads": TOWER_HEADS,
        "patch_size": PATCH_SIZE,
        "spatial_merge_size": MERGE_SIZE,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0, 1],
        "out_hidden_size": sizes.hidden_size,
    }
    config = config_class(
        text_config=text, vision_config=tower, **shared_settings(tokenizer) | {"tie_word_embeddings": is_tied}
    )
    unit = (PATCH_SIZE * MERGE_SIZE) ** 2
    image_size = {"shortest_edge": unit, "longest_edge": 16 * unit}
    processor = Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=image_size, patch_size=PATCH_SIZE, merge_size=MERGE_SIZE),
        tokenizer=tokenizer,
        video_processor=Qwen3VLVideoProcessor(
            size={"shortest_edge": unit, "longest_edge": 1024 * unit}, cap_pixels_per_frame=False
        ),
        chat_template=CHAT_TEMPLATE,
    )
    write_vision_model(folder, seed, model_class, config, processor)


def write_vision_model(
    folder: Path,
    seed: int,
    model_class: Any,
    config: Any,
    processor: Any,
    *,
    adjust: Callable[[Any], None] = lambda model: None,
    save: Callable[[Any, Path], None] = save_with_experts,
) -> None:
    """Write a model with random weights and its processor; the tower's mergers are scaled so that media matter.

    `adjust` changes the weights before they are written, and `save` writes the model into a folder.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_class(config)
        tower: Any = model.model.visual
        make_vision_matter([tower.merger, *getattr(tower, "deepstack_merger_list", ())])
        adjust(model)
    model.generation_config = generation_config(config.text_config)

    def write(temporary: Path) -> None:
        save(model, temporary)
        processor.save_pretrained(temporary)

    write_checkpoint(folder, write)


def _rotary_sections(sizes: LanguageSizes) -> list[int]:
    """Rotary pairs for time, height and width."""
    pairs = sizes.head_size // 2
    return [pairs - 2 * (pairs // 4), pairs // 4, pairs // 4]


def shared_settings(tokenizer: Qwen2Tokenizer) -> dict[str, Any]:
    """The settings that all their configurations share."""
    vocabulary = tokenizer.get_vocab()
    return {
        "image_token_id": vocabulary["<|image_pad|>"],
        "video_token_id": vocabulary["<|video_pad|>"],
        "vision_start_token_id": vocabulary["<|vision_start|>"],
        "vision_end_token_id": vocabulary["<|vision_end|>"],
        "tie_word_embeddings": True,
        "dtype": "float32",
    }
