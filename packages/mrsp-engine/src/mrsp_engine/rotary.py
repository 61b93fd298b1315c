"""The rotary settings in config.json: one rule for trainer and sampler.

The frequencies of a checkpoint are those that transformers computes from its config.json; YaRN's are then those of the
paper (arXiv 2309.00071), where the trained length decides which of them are stretched. A sampler gets settings from
which it computes the same numbers.

Two kinds of settings are refused: those that can't be the same on both sides (frequencies that change with the length
of a sequence, so that a shared prompt's would differ from a long response's), and those that transformers ignores
silently. The module only reads settings.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from mrsp_engine.errors import EngineUsageError

__all__ = ["SECTIONS", "language_section", "longest_context", "read_rope", "refuse_rotary"]

_TYPES = ("default", "linear", "llama3", "yarn")
_TYPES_OF_SEVERAL_AXES = ("default", "yarn")
_KEYS = ("rope_scaling", "rope_parameters")
"""In the order of precedence in transformers: of two, it ignores the second."""
_OLD_NAMES = {"mrope": "default", "su": "longrope"}
SECTIONS = "mrope_section"
_PARTLY_ROTATED = ("qwen3_5", "qwen3_5_moe")
"""Types of models in which only a part of a head's channels is rotated, by transformers and vLLM alike."""
_LIMITS = ("max_position_embeddings", "model_max_length")
_STRETCHES = ("linear", "dynamic")


def language_section(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The language model's part of a config.json: inside that of the thinker, in that of the text, or all of it."""
    model = cast(Mapping[str, Any], config.get("thinker_config") or config)
    return cast(Mapping[str, Any], model.get("text_config") or model)


def read_rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """The rotary settings in a language model's part of config.json, with `rope_type` under its current name."""
    found = next((config[key] for key in _KEYS if config.get(key)), {})
    values = dict(cast(Mapping[str, Any], found))
    name = str(values.get("rope_type", values.get("type", "default")))
    return values | {"rope_type": _OLD_NAMES.get(name, name)}


def longest_context(config: Mapping[str, Any]) -> int:
    """Number of positions that a language model's part of config.json allows, including those added by rotary scaling.

    A sampler uses `model_max_length` where it is set, as in VILA's language models, so the smaller number counts.

    Raises:
        KeyError: The configuration specifies no limit.
    """
    named = [int(config[name]) for name in _LIMITS if config.get(name) is not None]
    if not named:
        raise KeyError(_LIMITS[0])
    rope, longest = read_rope(config), min(named)
    factor = float(rope.get("factor") or 1.0)
    if rope["rope_type"] in _STRETCHES:
        return int(longest * factor)
    if rope["rope_type"] == "yarn":
        return max(longest, int(factor * (rope.get("original_max_position_embeddings") or 0)))
    return longest


def refuse_rotary(path: Path, config: Mapping[str, Any]) -> None:
    """Refuse a config.json whose rotary positions can't be the same in trainer and sampler.

    Args:
        path: The file, for the message.
        config: Its contents.

    Raises:
        EngineUsageError: The settings are refused; the message names the setting.
    """
    text = language_section(config)
    rope = read_rope(text)
    key = next((key for key in _KEYS if text.get(key)), _KEYS[1])
    if all(text.get(key) for key in _KEYS) and "rope_theta" not in {**text, **rope}:
        raise EngineUsageError(
            f"{path}: has rope_scaling in addition to rope_parameters, whose rope_theta would be lost; move everything "
            f"into "
            "rope_parameters"
        )
    if text is not config and any(config.get(key) for key in _KEYS) and _differs(read_rope(config), rope):
        raise EngineUsageError(
            f"{path}: has {next(key for key in _KEYS if config.get(key))} outside text_config, where it is not read; "
            f""
            "move it into text_config"
        )
    if _OLD_NAMES.get(str(old := rope.get("type")), old) not in (None, rope["rope_type"]):
        raise EngineUsageError(f"{path}: {key} has type={old!r} and rope_type={rope['rope_type']!r}; keep rope_type")
    expected = _TYPES_OF_SEVERAL_AXES if SECTIONS in rope else _TYPES
    if rope["rope_type"] not in expected:
        raise EngineUsageError(
            f"{path}: rope_type={rope['rope_type']!r} in {key}: trainer and sampler would not have the same rotary "
            f"frequencies; expected one of {', '.join(expected)}"
        )
    share = rope.get("partial_rotary_factor", text.get("partial_rotary_factor"))
    if config.get("model_type") in _PARTLY_ROTATED:
        if rope["rope_type"] != "default":
            raise EngineUsageError(
                f"{path}: rope_type={rope['rope_type']!r} in {key}: expected default for a model whose heads rotate a "
                "part of their channels only"
            )
    elif share not in (None, 1):
        raise EngineUsageError(f"{path}: partial_rotary_factor={share}: expected 1, all channels of a head rotated")


def _differs(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    names = ("rope_type", "factor", "original_max_position_embeddings", SECTIONS)
    return any(first.get(name) != second.get(name) for name in names)
