"""Floating-point operations of operators: matrix products by torch's own formulas, attention by visible pairs."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import flop_registry

from mrsp_engine.attention.split import BACKWARD_PER_FORWARD

__all__ = ["count_operations"]

_FORWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default


def count_operations(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> float:
    """Operations of one call; 0 for what is neither a product nor attention.

    Attention takes 4 per query head, channel and pair of a query with a key it sees, and 2.5 times that backward.
    """
    if func is _FORWARD:
        query, key = args[0], args[1]
        return _attention(query.shape, key.shape[-2], is_causal=bool(args[4] if len(args) > 4 else False))
    if func is _BACKWARD:
        query, key = args[1], args[2]
        return BACKWARD_PER_FORWARD * _attention(query.shape, key.shape[-2], is_causal=bool(args[7]))
    formula = flop_registry.get(func.overloadpacket)
    return 0.0 if formula is None else float(formula(*args, **kwargs, out_val=result))


def _attention(query_shape: Sequence[int], num_keys: int, *, is_causal: bool) -> float:
    *outer, num_queries, channels = query_shape
    pairs = num_queries * num_keys - (num_queries * (num_queries - 1) // 2 if is_causal else 0)
    for size in outer:
        pairs *= size
    return 4.0 * pairs * channels
