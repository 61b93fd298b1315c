"""Qwen2-VL and Qwen2.5-VL in their published layouts."""

from pathlib import Path
from typing import Any

from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)

from mrsp_engine.families.qwen.qwen2_5_vl import Qwen25VlPolicy
from mrsp_engine.tiny.published.files import PublishedTokenizer, create_weights, write_card, write_json, write_weights
from mrsp_engine.tiny.published.templates import QWEN_TEXT_TEMPLATE, QWEN_VL_TEMPLATE
from mrsp_engine.tiny.tokenizer import END_OF_TEXT, END_OF_TURN

__all__ = ["QWEN2_VL_KINDS", "write_qwen2_vl"]

QWEN2_VL_KINDS = ("qwen2_vl_2b", "qwen2_5_vl_3b", "qwen2_5_vl_7b")
"""The first two with a tied head, the last with a separate one."""


def write_qwen2_vl(kind: str, folder: Path, seed: int) -> None:
    """Fill a folder with one of `QWEN2_VL_KINDS`."""
    tokenizer = PublishedTokenizer()
    is_first, is_tied = kind == "qwen2_vl_2b", not kind.endswith("7b")
    config = _config(tokenizer, is_first=is_first, is_tied=is_tied)
    write_json(folder / "config.json", config)
    write_json(folder / "generation_config.json", _generation(tokenizer, is_first=is_first))
    images = {
        "min_pixels": 3136,
        "max_pixels": 12845056,
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2VLProcessor" if is_first else "Qwen2_5_VLProcessor",
    }
    write_json(folder / "preprocessor_config.json", images)
    write_json(folder / "chat_template.json", {"chat_template": QWEN_VL_TEMPLATE})
    tokenizer.write(folder, template=QWEN_TEXT_TEMPLATE, max_length=131072)
    classes: tuple[Any, Any] = (
        (Qwen2VLConfig, Qwen2VLForConditionalGeneration)
        if is_first
        else (Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration)
    )
    weights = create_weights(classes[1], classes[0](**config), seed)
    named = {Qwen25VlPolicy.checkpoint_name(name): weight for name, weight in weights.items()}
    write_weights(folder, named, num_shards=2 if is_tied else 5)
    write_card(folder, kind)


def _generation(tokenizer: PublishedTokenizer, *, is_first: bool) -> dict[str, Any]:
    end, text_end = tokenizer.ids[END_OF_TURN], tokenizer.ids[END_OF_TEXT]
    values: dict[str, Any] = {
        "bos_token_id": text_end,
        "pad_token_id": text_end,
        "do_sample": True,
        "eos_token_id": [end, text_end],
    }
    if is_first:
        sampling = {"repetition_penalty": 1.0, "temperature": 0.01, "top_p": 0.001, "top_k": 1}
        return values | sampling | {"transformers_version": "4.37.0"}
    return values | {"repetition_penalty": 1.05, "temperature": 0.000001, "transformers_version": "4.49.0"}


def _config(tokenizer: PublishedTokenizer, *, is_first: bool, is_tied: bool) -> dict[str, Any]:
    return {
        "architectures": ["Qwen2VLForConditionalGeneration" if is_first else "Qwen2_5_VLForConditionalGeneration"],
        "attention_dropout": 0.0,
        "bos_token_id": tokenizer.ids[END_OF_TEXT],
        "eos_token_id": tokenizer.ids[END_OF_TURN],
        "vision_start_token_id": tokenizer.ids["<|vision_start|>"],
        "vision_end_token_id": tokenizer.ids["<|vision_end|>"],
        "vision_token_id": tokenizer.ids["<|vision_pad|>"],
        "image_token_id": tokenizer.ids["<|image_pad|>"],
        "video_token_id": tokenizer.ids["<|video_pad|>"],
        "hidden_act": "silu",
        "hidden_size": 96,
        "initializer_range": 0.02,
        "intermediate_size": 128,
        "max_position_embeddings": 32768 if is_first else 128000,
        "max_window_layers": 3,
        "model_type": "qwen2_vl" if is_first else "qwen2_5_vl",
        "num_attention_heads": 3,
        "num_hidden_layers": 3,
        "num_key_value_heads": 1,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "tie_word_embeddings": is_tied,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.41.2",
        "use_cache": True,
        "use_sliding_window": False,
        "vision_config": _tower(is_first=is_first),
        "rope_scaling": {"type": "mrope", "mrope_section": [4, 6, 6]},
        "vocab_size": tokenizer.padded_size(),
    }


def _tower(*, is_first: bool) -> dict[str, Any]:
    if is_first:
        return {
            "depth": 3,
            "embed_dim": 64,
            "mlp_ratio": 2,
            "num_heads": 2,
            "in_chans": 3,
            "hidden_size": 96,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "spatial_patch_size": 14,
            "temporal_patch_size": 2,
        }
    return {
        "depth": 3,
        "hidden_act": "silu",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_heads": 2,
        "in_chans": 3,
        "out_hidden_size": 96,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "window_size": 112,
        "fullatt_block_indexes": [2],
        "tokens_per_second": 2,
        "temporal_patch_size": 2,
    }
