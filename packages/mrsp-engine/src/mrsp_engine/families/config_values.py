"""What the values in a checkpoint's configurations may be, and how many weights they ask for.

Readers of a `config.json` use its numbers as they are: text in place of a number is an error somewhere deep inside, and
a billion layers are built until memory runs out. So the values that shape a model are checked where they are read, and
a model is built only if its weights are in the files and fit into this machine's memory.

This module knows the names that the families' configurations use, but no family.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from longrl_files.messages import visible
from mrsp_engine.errors import EngineUsageError

__all__ = ["least_weights", "refuse_wrong_sizes", "refuse_wrong_values"]

_MOST = {
    "hidden_size": 2**20,
    "intermediate_size": 2**22,
    "moe_intermediate_size": 2**22,
    "shared_expert_intermediate_size": 2**22,
    "num_hidden_layers": 4096,
    "depth": 4096,
    "encoder_layers": 4096,
    "decoder_layers": 4096,
    "num_attention_heads": 2**16,
    "num_key_value_heads": 2**16,
    "num_heads": 2**16,
    "encoder_attention_heads": 2**16,
    "head_dim": 2**16,
    "linear_num_key_heads": 2**16,
    "linear_num_value_heads": 2**16,
    "linear_key_head_dim": 2**16,
    "linear_value_head_dim": 2**16,
    "linear_conv_kernel_dim": 4096,
    "embed_dim": 2**20,
    "d_model": 2**20,
    "encoder_ffn_dim": 2**22,
    "out_hidden_size": 2**20,
    "vocab_size": 2**26,
    "num_experts": 2**14,
    "num_experts_per_tok": 2**14,
    "patch_size": 4096,
    "temporal_patch_size": 4096,
    "spatial_merge_size": 4096,
    "merge_size": 4096,
    "image_size": 2**16,
    "num_channels": 4096,
    "in_channels": 4096,
    "in_chans": 4096,
    "num_position_embeddings": 2**26,
    "num_mel_bins": 2**16,
    "max_source_positions": 2**26,
    "max_position_embeddings": 2**40,
}
"""Whole numbers from 1 up to a limit that no real model reaches."""

_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
_SECTIONS = (
    "thinker_config",
    "text_config",
    "vision_config",
    "audio_config",
    "rope_scaling",
    "rope_parameters",
    "video_processor",
)
_NUMBERS = (
    "factor",
    "mlp_ratio",
    "rope_theta",
    "beta_fast",
    "beta_slow",
    "attention_factor",
    "rms_norm_eps",
    "tokens_per_second",
    "position_id_per_seconds",
    "seconds_per_chunk",
)
_WHOLE = (
    "original_max_position_embeddings",
    "max_window_layers",
    "window_size",
    "min_pixels",
    "max_pixels",
    "sliding_window",
    "decoder_sparse_step",
)
_LISTS = ("fullatt_block_indexes", "deepstack_visual_indexes", "mrope_section", "mlp_only_layers")
_TEXTS = ("model_type", "rope_type", "hidden_act", "mm_projector_type")


def refuse_wrong_values(path: Path, values: Mapping[str, Any]) -> None:
    """Refuse a configuration in which a known name has a value of another kind.

    Args:
        path: Where it was read, for the message.
        values: Its contents, including its sections.

    Raises:
        EngineUsageError: There is such a value (the message names it and what was expected), or the weights are
            quantized.
    """
    for key, value in values.items():
        if key == "quantization_config" and value is not None:
            method = cast(dict[str, Any], value).get("quant_method") if isinstance(value, dict) else value
            raise EngineUsageError(
                f"{path}: the weights are quantized ({visible(str(method), 60)}); expected trainable numbers, "
                "set the folder of the model before that"
            )
        expected = None if value is None else _expectation(key, value)
        if expected is not None:
            raise EngineUsageError(
                f"{path}: {visible(key, 60)}={visible(repr(value), 60)}: expected {expected}; set another model folder"
            )
        if key in _SECTIONS and value is not None:
            refuse_wrong_values(path, cast(dict[str, Any], value))


def _expectation(key: str, value: Any) -> str | None:
    """What was expected instead of a value, or None if the value is acceptable."""
    most = _MOST.get(key)
    if most is not None:
        return None if _is_whole(value) and 1 <= value <= most else f"a whole number from 1 to {most}"
    if key in _TOKENS or key.endswith("_token_id"):
        ids = cast(list[Any], value) if isinstance(value, list) and key in _TOKENS else [value]
        return None if ids and all(map(_is_token, ids)) else "the id of a token"
    for keys, is_right, expected in _KINDS:
        if key in keys:
            return None if is_right(value) else expected
    return None


def _is_whole(value: Any) -> bool:
    return type(value) is int


def _is_token(value: Any) -> bool:
    return _is_whole(value) and -1 <= value < 2**31


_KINDS: tuple[tuple[tuple[str, ...], Callable[[Any], bool], str], ...] = (
    (_SECTIONS, lambda value: isinstance(value, dict), "an object"),
    (_NUMBERS, lambda value: type(value) in (int, float) and 0 <= value < 2**40, "a number that isn't negative"),
    (_WHOLE, lambda value: type(value) is int and 0 <= value < 2**40, "a whole number from 0"),
    (
        _LISTS,
        lambda value: (
            isinstance(value, list)
            and len(cast(list[Any], value)) <= 4096
            and all(map(_is_token, cast(list[Any], value)))
        ),
        "a list of whole numbers",
    ),
    (_TEXTS, lambda value: isinstance(value, str), "a text"),
    (
        ("layer_types", "architectures"),
        lambda value: isinstance(value, list) and all(isinstance(item, str) for item in cast(list[Any], value)),
        "a list of texts",
    ),
)


def refuse_wrong_sizes(path: Path, values: Mapping[str, Any], *, stored: int | None, number_bytes: int) -> None:
    """Refuse to build a model whose weights aren't in its files, or that this machine can't hold.

    Args:
        path: The configuration, for the message.
        values: All its values, including defaults that its file omits.
        stored: Number of weights in the files; None if unknown.
        number_bytes: Bytes of one number in the model to be built.

    Raises:
        EngineUsageError: The weights are missing or don't fit.
    """
    least = least_weights(values)
    if stored is not None and least > stored:
        raise EngineUsageError(
            f"{path}: asks for at least {least:,} weights and the files hold {stored:,}; the configuration is of "
            "another model or changed, set another model folder"
        )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    needed = max(least, stored or 0) * number_bytes
    if needed > memory:
        raise EngineUsageError(
            f"{path}: a model of {needed / 1e9:,.1f} GB at {number_bytes} bytes a weight, and this machine has "
            f"{memory / 1e9:,.1f} GB of memory; set another model folder, a smaller `dtype`, or take a larger machine"
        )


def least_weights(values: Mapping[str, Any]) -> int:
    """A lower bound of the number of weights of such a model: the sum of its large matrices."""
    text = cast(Mapping[str, Any], values.get("text_config") or values)
    total = _language_weights(text) if "vocab_size" in text else 0
    vision = values.get("vision_config") or (values if "vocab_size" not in values else None)
    return total + (_vision_weights(cast(Mapping[str, Any], vision)) if vision else 0)


def _language_weights(text: Mapping[str, Any]) -> int:
    width, layers, heads = (_get(text, name) for name in ("hidden_size", "num_hidden_layers", "num_attention_heads"))
    channels = _get(text, "head_dim") or width // max(1, heads)
    attention = 2 * width * (heads + (_get(text, "num_key_value_heads") or heads)) * channels
    linear_layers = min(layers, cast(list[Any], text.get("layer_types") or []).count("linear_attention"))
    forward = 3 * width * _get(text, "intermediate_size")
    if _get(text, "num_experts"):
        experts = 3 * width * _get(text, "moe_intermediate_size") * _get(text, "num_experts")
        is_mixed = bool(text.get("mlp_only_layers")) or _get(text, "decoder_sparse_step") > 1
        forward = min(forward, experts) if is_mixed else experts
    mixing = (layers - linear_layers) * attention + linear_layers * _linear_weights(text)
    return _get(text, "vocab_size") * width + mixing + layers * forward


def _linear_weights(text: Mapping[str, Any]) -> int:
    """Weights of a layer of linear attention: queries and keys, values, their gate, and the output."""
    keys = _get(text, "linear_num_key_heads") * _get(text, "linear_key_head_dim")
    values = _get(text, "linear_num_value_heads") * _get(text, "linear_value_head_dim")
    return _get(text, "hidden_size") * (2 * keys + 3 * values)


def _vision_weights(vision: Mapping[str, Any]) -> int:
    width = _get(vision, "embed_dim") or _get(vision, "hidden_size")
    depth = _get(vision, "depth") or _get(vision, "num_hidden_layers")
    forward = _get(vision, "intermediate_size") or int(width * min(64, float(vision.get("mlp_ratio") or 0)))
    patch = _get(vision, "patch_size")
    channels = _get(vision, "in_channels") or _get(vision, "num_channels") or 1
    patches = patch**2 * channels * max(1, _get(vision, "temporal_patch_size"))
    places = _get(vision, "num_position_embeddings")
    if _get(vision, "image_size") and "depth" not in vision:
        places = (_get(vision, "image_size") // max(1, patch)) ** 2
    merged = width * _get(vision, "spatial_merge_size") ** 2
    mergers = 1 + len(cast(list[Any], vision.get("deepstack_visual_indexes") or ()))
    return depth * (4 * width**2 + 2 * width * forward) + width * (patches + places) + mergers * merged**2


def _get(values: Mapping[str, Any], name: str) -> int:
    value = values.get(name)
    return value if type(value) is int else 0
