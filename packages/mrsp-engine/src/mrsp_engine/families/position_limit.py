"""The longest sequence that a language model's configuration allows: plain values, without torch."""

from collections.abc import Mapping
from typing import Any, cast

__all__ = ["longest_sequence"]

_LIMITS = ("max_position_embeddings", "model_max_length")
_STRETCHES = ("linear", "dynamic")


def longest_sequence(config: Mapping[str, Any]) -> int:
    """Tokens for which a model was trained, or to which its rotary positions are extended.

    A sampler goes by `model_max_length` where it is named, which VILA's language models do, so the smaller number
    counts. Ways of extending positions other than these two count in `max_position_embeddings` what they extend to.

    Raises:
        KeyError: The configuration names no limit.
    """
    named = [int(config[name]) for name in _LIMITS if config.get(name) is not None]
    if not named:
        raise KeyError(_LIMITS[0])
    rotary = cast(dict[str, Any], config.get("rope_parameters") or config.get("rope_scaling") or {})
    is_stretched = rotary.get("rope_type", rotary.get("type")) in _STRETCHES
    return int(min(named) * (float(rotary.get("factor") or 1.0) if is_stretched else 1.0))
