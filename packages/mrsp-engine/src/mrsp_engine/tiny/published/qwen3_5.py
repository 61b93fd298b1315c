"""Qwen3.5 in its published layout, with the layers that predict further tokens (`mtp.`), which no class here loads."""

from pathlib import Path
from typing import Any

import torch
from transformers import Qwen3_5Config, Qwen3_5ForConditionalGeneration

from mrsp_engine.tiny.published.files import (
    PLAIN_TOKENS,
    PublishedTokenizer,
    create_weights,
    write_card,
    write_json,
    write_weights,
)
from mrsp_engine.tiny.published.qwen3_vl import write_processors
from mrsp_engine.tiny.published.templates import QWEN_VL_TEMPLATE
from mrsp_engine.tiny.tokenizer import END_OF_TEXT, END_OF_TURN

__all__ = ["QWEN3_5_KINDS", "write_qwen3_5"]

QWEN3_5_KINDS = ("qwen3_5_27b",)

_LAST_LAYER = "model.language_model.layers.3."
_PREDICTOR = "mtp.layers.0."


def write_qwen3_5(kind: str, folder: Path, seed: int) -> None:
    """Fill a folder with one of `QWEN3_5_KINDS`."""
    tokenizer = PublishedTokenizer(plain=(*PLAIN_TOKENS, "<tool_response>", "</tool_response>", "<think>", "</think>"))
    config = _config(tokenizer)
    write_json(folder / "config.json", config)
    end, text_end = tokenizer.ids[END_OF_TURN], tokenizer.ids[END_OF_TEXT]
    generation = {
        "bos_token_id": text_end,
        "pad_token_id": text_end,
        "do_sample": True,
        "eos_token_id": [end, text_end],
        "top_k": 20,
        "top_p": 0.95,
        "temperature": 0.6,
        "transformers_version": "4.57.0.dev0",
    }
    write_json(folder / "generation_config.json", generation)
    write_processors(folder)
    (folder / "chat_template.jinja").write_text(QWEN_VL_TEMPLATE, encoding="utf-8")
    tokenizer.write(folder, template=QWEN_VL_TEMPLATE, max_length=262144)
    weights = create_weights(Qwen3_5ForConditionalGeneration, Qwen3_5Config(**config), seed)
    # The predictor is one softmax layer more, fed with a token's embedding beside the state before it.
    weights |= {
        _PREDICTOR + name.removeprefix(_LAST_LAYER): weight.clone()
        for name, weight in weights.items()
        if name.startswith(_LAST_LAYER)
    }
    norm = weights["model.language_model.norm.weight"]
    weights |= {f"mtp.{name}.weight": norm.clone() for name in ("norm", "pre_fc_norm_embedding", "pre_fc_norm_hidden")}
    weights["mtp.fc.weight"] = torch.cat((torch.eye(len(norm)), torch.eye(len(norm))), dim=1).to(norm)
    write_weights(folder, weights, num_shards=4)
    write_card(folder, kind)


def _config(tokenizer: PublishedTokenizer) -> dict[str, Any]:
    return {
        "architectures": ["Qwen3_5ForConditionalGeneration"],
        "image_token_id": tokenizer.ids["<|image_pad|>"],
        "model_type": "qwen3_5",
        "text_config": _text(tokenizer),
        "tie_word_embeddings": False,
        "transformers_version": "4.57.0.dev0",
        "video_token_id": tokenizer.ids["<|video_pad|>"],
        "vision_config": {
            "deepstack_visual_indexes": [],
            "depth": 3,
            "hidden_act": "gelu_pytorch_tanh",
            "hidden_size": 64,
            "in_channels": 3,
            "initializer_range": 0.02,
            "intermediate_size": 128,
            "model_type": "qwen3_5",
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


def _text(tokenizer: PublishedTokenizer) -> dict[str, Any]:
    return {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "attn_output_gate": True,
        "dtype": "bfloat16",
        "eos_token_id": tokenizer.ids[END_OF_TEXT],
        "full_attention_interval": 4,
        "head_dim": 64,
        "hidden_act": "silu",
        "hidden_size": 96,
        "initializer_range": 0.02,
        "intermediate_size": 128,
        "layer_types": ["linear_attention"] * 3 + ["full_attention"],
        "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": 64,
        "linear_num_key_heads": 1,
        "linear_num_value_heads": 3,
        "linear_value_head_dim": 64,
        "mamba_ssm_dtype": "float32",
        "max_position_embeddings": 262144,
        "model_type": "qwen3_5_text",
        "mtp_num_hidden_layers": 1,
        "mtp_use_dedicated_embeddings": False,
        "num_attention_heads": 3,
        "num_hidden_layers": 4,
        "num_key_value_heads": 1,
        "rms_norm_eps": 1e-06,
        "rope_parameters": {
            "mrope_interleaved": True,
            "mrope_section": [3, 3, 2],
            "partial_rotary_factor": 0.25,
            "rope_theta": 10000000,
            "rope_type": "default",
        },
        "tie_word_embeddings": False,
        "use_cache": True,
        "vocab_size": tokenizer.padded_size(),
    }
