"""The engine's entry point into transformers: an attention implementation named `mrsp`.

Any architecture that uses transformers' attention registry can run under it. A forward pass with a plan (keyword
`attention_plan`) follows the plan; one without is ordinary `sdpa`, masks included, so generation, caches and plain rows
work unchanged.
"""

from typing import Any

from torch import Tensor, nn
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

from mrsp_engine.attention.backends.base import choose_backend
from mrsp_engine.attention.packed import packed_attention
from mrsp_engine.attention.plan import AttentionPlan

ATTENTION_NAME = "mrsp"


def register_attention() -> str:
    """Register the implementation with transformers and return its name; calling it again changes nothing."""
    if ATTENTION_NAME not in ALL_ATTENTION_FUNCTIONS.valid_keys():
        AttentionInterface.register(ATTENTION_NAME, attention_forward)
        AttentionMaskInterface.register(ATTENTION_NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    return ATTENTION_NAME


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    attention_plan: AttentionPlan | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Compute attention with the signature that transformers expects.

    Takes query [1, heads, L, C], key and value [1, key heads, L, C]; returns [1, L, heads, C] and no weights.

    Raises:
        ValueError: The model's settings (dropout, a mask, several rows) can't be applied exactly under a plan.
    """
    if attention_plan is None:
        plain = ALL_ATTENTION_FUNCTIONS["sdpa"]
        return plain(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs)
    if dropout or attention_mask is not None or query.shape[0] != 1:
        raise ValueError(
            f"packed attention needs one row without dropout or mask; got {query.shape[0]} rows, dropout {dropout}, "
            f"{'a' if attention_mask is not None else 'no'} mask"
        )
    queries, keys, values = query[0], key[0], value[0]
    trade = attention_plan.head_exchange
    if trade is not None:
        queries, keys, values = trade.to_heads(queries, keys, values)
    output = packed_attention(
        queries,
        keys,
        values,
        attention_plan.exchange,
        scale=query.shape[-1] ** -0.5 if scaling is None else scaling,
        backend=choose_backend(query, attention_plan.backend),
        key_heads=attention_plan.key_heads,
    )
    return (output if trade is None else trade.to_tokens(output))[None], None
