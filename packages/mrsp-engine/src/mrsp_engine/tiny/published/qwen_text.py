"""Qwen2.5 and Qwen3 language models in their published layouts."""

from pathlib import Path
from typing import Any

from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from mrsp_engine.tiny.published.files import (
    PLAIN_TOKENS,
    PublishedTokenizer,
    create_weights,
    write_card,
    write_json,
    write_weights,
)
from mrsp_engine.tiny.published.templates import QWEN_TEXT_TEMPLATE
from mrsp_engine.tiny.tokenizer import END_OF_TEXT, END_OF_TURN

__all__ = ["QWEN_TEXT_KINDS", "write_qwen_text"]

QWEN_TEXT_KINDS = ("qwen2_5_1_5b", "qwen2_5_7b", "qwen3_4b", "qwen3_8b")
"""One file with a tied head; shards with a separate head; and, with heads × head size ≠ hidden size, shards with a tied
head and with a separate one.
"""

_TIED = ("qwen2_5_1_5b", "qwen3_4b")
_HIDDEN_SIZES = {"qwen2_5_1_5b": 96, "qwen2_5_7b": 96, "qwen3_4b": 64, "qwen3_8b": 128}


def write_qwen_text(kind: str, folder: Path, seed: int) -> None:
    """Fill a folder with one of `QWEN_TEXT_KINDS`."""
    is_third = kind.startswith("qwen3")
    plain = (*PLAIN_TOKENS, "<think>", "</think>") if is_third else PLAIN_TOKENS
    tokenizer = PublishedTokenizer(plain=plain)
    config = _config(tokenizer, _HIDDEN_SIZES[kind], is_third=is_third, is_tied=kind in _TIED)
    write_json(folder / "config.json", config)
    write_json(folder / "generation_config.json", _generation(tokenizer, is_third=is_third))
    tokenizer.write(folder, template=QWEN_TEXT_TEMPLATE, max_length=131072)
    classes: tuple[Any, Any] = (Qwen3Config, Qwen3ForCausalLM) if is_third else (Qwen2Config, Qwen2ForCausalLM)
    weights = create_weights(classes[1], classes[0](**config), seed)
    write_weights(folder, weights, num_shards=1 if kind == "qwen2_5_1_5b" else 3)
    write_card(folder, kind)


def _config(tokenizer: PublishedTokenizer, hidden_size: int, *, is_third: bool, is_tied: bool) -> dict[str, Any]:
    values: dict[str, Any] = {
        "architectures": ["Qwen3ForCausalLM" if is_third else "Qwen2ForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": tokenizer.ids[END_OF_TEXT],
        "eos_token_id": tokenizer.ids[END_OF_TURN],
        "hidden_act": "silu",
        "hidden_size": hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": 128,
        "max_position_embeddings": 40960 if is_third else 32768,
        "max_window_layers": 3,
        "model_type": "qwen3" if is_third else "qwen2",
        "num_attention_heads": 4 if is_third else 3,
        "num_hidden_layers": 3,
        "num_key_value_heads": 2 if is_third else 1,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000 if is_third else 1000000.0,
        "sliding_window": None if is_third else 32768,
        "tie_word_embeddings": is_tied,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.51.0" if is_third else "4.43.1",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": tokenizer.padded_size(),
    }
    return values | ({"attention_bias": False, "head_dim": 32, "rope_scaling": None} if is_third else {})


def _generation(tokenizer: PublishedTokenizer, *, is_third: bool) -> dict[str, Any]:
    end, text_end = tokenizer.ids[END_OF_TURN], tokenizer.ids[END_OF_TEXT]
    values: dict[str, Any] = {
        "bos_token_id": text_end,
        "do_sample": True,
        "eos_token_id": [end, text_end],
        "pad_token_id": text_end,
    }
    if is_third:
        return values | {"temperature": 0.6, "top_k": 20, "top_p": 0.95, "transformers_version": "4.51.0"}
    sampling = {"repetition_penalty": 1.05, "temperature": 0.7, "top_p": 0.8, "top_k": 20}
    return values | sampling | {"transformers_version": "4.37.0"}
