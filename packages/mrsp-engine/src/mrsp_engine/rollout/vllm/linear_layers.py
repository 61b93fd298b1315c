"""What vLLM can compute of layers of linear attention on CPUs, known before it fails in its first request.

Its kernels for CPUs compute in bfloat16, for heads of 64 or 128 channels, and without adapters. GPUs have no such
limits. The module only reads settings.
"""

from collections.abc import Mapping
from typing import Any, cast

from mrsp_engine.errors import EngineUsageError

__all__ = ["refuse_linear_layers"]

_CHANNELS = (64, 128)


def refuse_linear_layers(config: Mapping[str, Any], *, dtype: str, has_adapter: bool) -> None:
    """Refuse what a CPU can't sample.

    Args:
        config: The model's config.json.
        dtype: The sampler's.
        has_adapter: Whether vLLM would apply an adapter.

    Raises:
        EngineUsageError: The message names the setting.
    """
    text = cast(Mapping[str, Any], config.get("text_config") or config)
    if "linear_attention" not in cast(list[str], text.get("layer_types") or ()):
        return
    cure = 'or set the sampler\'s engine to "transformers"'
    if dtype != "bfloat16":
        raise EngineUsageError(
            f'dtype={dtype!r}: on CPUs vLLM computes layers of linear attention in bfloat16 only; set "bfloat16", '
            f"{cure}"
        )
    for kind in ("key", "value"):
        channels = text.get(f"linear_{kind}_head_dim", 128)
        if channels not in _CHANNELS:
            raise EngineUsageError(
                f"linear_{kind}_head_dim={channels}: on CPUs vLLM computes heads of {' or '.join(map(str, _CHANNELS))} "
                f"channels only; set another model folder, {cure}"
            )
    if has_adapter:
        raise EngineUsageError(
            "an adapter for a model with linear attention: on CPUs vLLM can't compute these layers beside adapters; "
            'let the sampler take merged weights (sampler.lora_sync = "merged")'
        )
