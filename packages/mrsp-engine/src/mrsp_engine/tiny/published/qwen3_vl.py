"""Qwen3-VL in its published layout, with and without experts."""

from pathlib import Path
from typing import Any

from transformers import (
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
)

from mrsp_engine.families.qwen.qwen3_vl_moe import EXPERT_WEIGHTS
from mrsp_engine.tiny.published.files import (
    PLAIN_TOKENS,
    PublishedTokenizer,
    create_weights,
    write_card,
    write_json,
    write_weights,
)
from mrsp_engine.tiny.published.templates import QWEN_VL_TEMPLATE
from mrsp_engine.tiny.tokenizer import END_OF_TEXT, END_OF_TURN

__all__ = ["QWEN3_VL_KINDS", "write_processors", "write_qwen3_vl"]

QWEN3_VL_KINDS = ("qwen3_vl_4b", "qwen3_vl_8b", "qwen3_vl_30b_a3b")
"""With a tied head and heads × head size ≠ hidden size; with a separate head and the two equal; with experts."""


def write_qwen3_vl(kind: str, folder: Path, seed: int) -> None:
    """Fill a folder with one of `QWEN3_VL_KINDS`."""
    tokenizer = PublishedTokenizer(plain=(*PLAIN_TOKENS, "<tool_response>", "</tool_response>", "<think>", "</think>"))
    is_tied, has_experts = kind == "qwen3_vl_4b", kind == "qwen3_vl_30b_a3b"
    config = _config(tokenizer, is_tied=is_tied, has_experts=has_experts)
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
    write_processors(folder)
    write_json(folder / "chat_template.json", {"chat_template": QWEN_VL_TEMPLATE})
    tokenizer.write(folder, template=QWEN_VL_TEMPLATE, max_length=262144)
    classes: tuple[Any, Any] = (
        (Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration)
        if has_experts
        else (Qwen3VLConfig, Qwen3VLForConditionalGeneration)
    )
    weights = create_weights(classes[1], classes[0](**config), seed)
    for name in weights:
        if name.endswith(EXPERT_WEIGHTS):  # which lie the other way round in transformers' class
            weights[name] = weights[name].transpose(1, 2).contiguous()
    write_weights(folder, weights, num_shards=2 if is_tied else 4)
    write_card(folder, kind)


def write_processors(folder: Path) -> None:
    """Write how Qwen3-VL and what followed it resize images and videos."""
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


def _config(tokenizer: PublishedTokenizer, *, is_tied: bool, has_experts: bool) -> dict[str, Any]:
    model_type = "qwen3_vl_moe" if has_experts else "qwen3_vl"
    return {
        "architectures": [f"Qwen3VL{'Moe' * has_experts}ForConditionalGeneration"],
        "image_token_id": tokenizer.ids["<|image_pad|>"],
        "model_type": model_type,
        "text_config": _text(tokenizer, is_tied=is_tied, has_experts=has_experts),
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
            "model_type": model_type,
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


def _text(tokenizer: PublishedTokenizer, *, is_tied: bool, has_experts: bool) -> dict[str, Any]:
    values: dict[str, Any] = {
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
        "num_attention_heads": 4 if is_tied else 3,
        "num_hidden_layers": 3,
        "num_key_value_heads": 1,
        "rms_norm_eps": 1e-06,
        "rope_scaling": {"mrope_interleaved": True, "mrope_section": [6, 5, 5], "rope_type": "default"},
        "rope_theta": 5000000,
        "tie_word_embeddings": is_tied,
        "use_cache": True,
        "vocab_size": tokenizer.padded_size(),
    }
    if not has_experts:
        return values
    del values["tie_word_embeddings"]
    experts = {
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "model_type": "qwen3_vl_moe_text",
        "moe_intermediate_size": 64,
        "norm_topk_prob": True,
        "num_experts": 4,
        "num_experts_per_tok": 2,
    }
    return dict(sorted((values | experts).items()))
