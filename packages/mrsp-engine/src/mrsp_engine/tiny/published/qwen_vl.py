"""Qwen2.5-VL and Qwen3-VL in their published layouts."""

from pathlib import Path
from typing import Any

from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from mrsp_engine.families.qwen.qwen2_5_vl import Qwen25VlPolicy
from mrsp_engine.tiny.published.files import (
    PLAIN_TOKENS,
    PublishedTokenizer,
    create_weights,
    write_card,
    write_json,
    write_weights,
)
from mrsp_engine.tiny.published.templates import QWEN_TEXT_TEMPLATE, QWEN_VL_TEMPLATE
from mrsp_engine.tiny.tokenizer import END_OF_TEXT, END_OF_TURN

__all__ = ["QWEN2_5_VL_KINDS", "QWEN3_VL_KINDS", "write_qwen2_5_vl", "write_qwen3_vl"]

QWEN2_5_VL_KINDS = ("qwen2_5_vl_3b", "qwen2_5_vl_7b")
"""With a tied head, and with a separate one."""

QWEN3_VL_KINDS = ("qwen3_vl_4b", "qwen3_vl_8b")
"""With a tied head and heads × head size ≠ hidden size; with a separate head and the two equal."""


def write_qwen2_5_vl(kind: str, folder: Path, seed: int) -> None:
    """Fill a folder with one of `QWEN2_5_VL_KINDS`."""
    tokenizer = PublishedTokenizer()
    config = _config_2_5(tokenizer, is_tied=kind.endswith("3b"))
    write_json(folder / "config.json", config)
    end, text_end = tokenizer.ids[END_OF_TURN], tokenizer.ids[END_OF_TEXT]
    generation = {
        "bos_token_id": text_end,
        "pad_token_id": text_end,
        "do_sample": True,
        "eos_token_id": [end, text_end],
        "repetition_penalty": 1.05,
        "temperature": 0.000001,
        "transformers_version": "4.49.0",
    }
    write_json(folder / "generation_config.json", generation)
    images = {
        "min_pixels": 3136,
        "max_pixels": 12845056,
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2_5_VLProcessor",
    }
    write_json(folder / "preprocessor_config.json", images)
    write_json(folder / "chat_template.json", {"chat_template": QWEN_VL_TEMPLATE})
    tokenizer.write(folder, template=QWEN_TEXT_TEMPLATE, max_length=131072)
    weights = create_weights(Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLConfig(**config), seed)
    named = {Qwen25VlPolicy.checkpoint_name(name): weight for name, weight in weights.items()}
    write_weights(folder, named, num_shards=2 if kind.endswith("3b") else 5)
    write_card(folder, kind)


def write_qwen3_vl(kind: str, folder: Path, seed: int) -> None:
    """Fill a folder with one of `QWEN3_VL_KINDS`."""
    tokenizer = PublishedTokenizer(plain=(*PLAIN_TOKENS, "<tool_response>", "</tool_response>", "<think>", "</think>"))
    is_tied = kind.endswith("4b")
    config = _config_3(tokenizer, is_tied=is_tied, num_heads=4 if is_tied else 3)
    write_json(folder / "config.json", config)
    end, text_end = tokenizer.ids[END_OF_TURN], tokenizer.ids[END_OF_TEXT]
    generation = {
        "bos_token_id": text_end,
        "pad_token_id": text_end,
        "do_sample": True,
        "eos_token_id": [end, text_end],
        "top_k": 20,
        "top_p": 0.8,
        "repetition_penalty": 1.0,
        "temperature": 0.7,
        "transformers_version": "4.56.0",
    }
    write_json(folder / "generation_config.json", generation)
    patches: dict[str, Any] = {
        "patch_size": 16,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "processor_class": "Qwen3VLProcessor",
    }
    images = {"size": {"longest_edge": 16777216, "shortest_edge": 65536}, **patches}
    write_json(folder / "preprocessor_config.json", images | {"image_processor_type": "Qwen2VLImageProcessorFast"})
    videos = {"size": {"longest_edge": 25165824, "shortest_edge": 4096}, **patches}
    write_json(folder / "video_preprocessor_config.json", videos | {"video_processor_type": "Qwen3VLVideoProcessor"})
    write_json(folder / "chat_template.json", {"chat_template": QWEN_VL_TEMPLATE})
    tokenizer.write(folder, template=QWEN_VL_TEMPLATE, max_length=262144)
    weights = create_weights(Qwen3VLForConditionalGeneration, Qwen3VLConfig(**config), seed)
    write_weights(folder, weights, num_shards=2 if is_tied else 4)
    write_card(folder, kind)


def _config_2_5(tokenizer: PublishedTokenizer, *, is_tied: bool) -> dict[str, Any]:
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
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
        "max_position_embeddings": 128000,
        "max_window_layers": 3,
        "model_type": "qwen2_5_vl",
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
        "vision_config": {
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
        },
        "rope_scaling": {"type": "mrope", "mrope_section": [4, 6, 6]},
        "vocab_size": tokenizer.padded_size(),
    }


def _config_3(tokenizer: PublishedTokenizer, *, is_tied: bool, num_heads: int) -> dict[str, Any]:
    return {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "image_token_id": tokenizer.ids["<|image_pad|>"],
        "model_type": "qwen3_vl",
        "text_config": {
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": tokenizer.ids[END_OF_TEXT],
            "dtype": "bfloat16",
            "eos_token_id": tokenizer.ids[END_OF_TURN],
            "head_dim": 32,
            "hidden_act": "silu",
            "hidden_size": 96,
            "initializer_range": 0.02,
            "intermediate_size": 128,
            "max_position_embeddings": 262144,
            "model_type": "qwen3_vl_text",
            "num_attention_heads": num_heads,
            "num_hidden_layers": 3,
            "num_key_value_heads": 1,
            "rms_norm_eps": 1e-06,
            "rope_scaling": {"mrope_interleaved": True, "mrope_section": [6, 5, 5], "rope_type": "default"},
            "rope_theta": 5000000,
            "tie_word_embeddings": is_tied,
            "use_cache": True,
            "vocab_size": tokenizer.padded_size(),
        },
        "tie_word_embeddings": is_tied,
        "transformers_version": "4.57.0.dev0",
        "video_token_id": tokenizer.ids["<|video_pad|>"],
        "vision_config": {
            "deepstack_visual_indexes": [0, 1],
            "depth": 3,
            "hidden_act": "gelu_pytorch_tanh",
            "hidden_size": 64,
            "in_channels": 3,
            "initializer_range": 0.02,
            "intermediate_size": 128,
            "model_type": "qwen3_vl",
            "num_heads": 2,
            "num_position_embeddings": 2304,
            "out_hidden_size": 96,
            "patch_size": 16,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        },
        "vision_end_token_id": tokenizer.ids["<|vision_end|>"],
        "vision_start_token_id": tokenizer.ids["<|vision_start|>"],
    }
