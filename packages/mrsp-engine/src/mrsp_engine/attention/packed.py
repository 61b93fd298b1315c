"""Exact attention over a packed row, as blocks joined by log-sum-exp.

Independent of models and of how keys and values get here: an exchange provides them, with the calls to make on them.
Results are joined, and gradients summed, in at least float32.

Shape legend: K key heads, N query heads per key head, L own tokens, T visited tokens, C head channels.
"""

from typing import Any, cast

import torch
from torch import Tensor

from mrsp_engine.attention.backends.base import AttentionBackend, Block
from mrsp_engine.attention.exchange import Calls, KeyValueExchange
from mrsp_engine.layout import AttentionCall, TokenRange


def packed_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    exchange: KeyValueExchange,
    *,
    scale: float,
    backend: AttentionBackend,
    key_heads: Tensor | None = None,
) -> Tensor:
    """Attend from this rank's queries to the whole row.

    Args:
        query: Own queries [heads, L, C].
        key: Own keys [key heads, L, C].
        value: Own values [key heads, L, C].
        exchange: Provides the keys and values of other ranks, and the calls.
        scale: Factor of the scores.
        backend: Computes a block.
        key_heads: Which key head serves each equal run of query heads, int64 [K]; the key heads in order if None.

    Returns:
        [L, heads, C], the layout the next projection reads.
    """
    grouped = query.unflatten(0, (key.shape[0] if key_heads is None else len(key_heads), -1))  # [K, N, L, C]
    output = _PackedAttention.apply(grouped, key, value, exchange, scale, backend, key_heads)
    return cast(Tensor, output).permute(2, 0, 1, 3).flatten(1, 2)


class _PackedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        exchange: KeyValueExchange,
        scale: float,
        backend: AttentionBackend,
        key_heads: Tensor | None,
    ) -> Tensor:
        num_key_heads, group_size, num_tokens, channels = query.shape
        dtype = torch.promote_types(query.dtype, torch.float32)
        # Laid out token by token, as fused operators return and expect them.
        output = query.new_empty((num_tokens, num_key_heads, group_size, channels), dtype=dtype).permute(1, 2, 0, 3)
        logsumexp = query.new_empty((num_key_heads, num_tokens, group_size), dtype=dtype).transpose(1, 2)

        def visit(keys: Tensor, values: Tensor, calls: Calls) -> None:
            keys, values = _served(keys, key_heads), _served(values, key_heads)
            for call in calls:
                part, part_logsumexp = backend.forward(_block(query, keys, values, call, scale))
                target, target_logsumexp = _rows(output, call.queries), _rows(logsumexp, call.queries, dim=2)
                if call.causal:
                    # Causal calls come first, so for their queries they are the first result.
                    target.copy_(part)
                    target_logsumexp.copy_(part_logsumexp)
                else:
                    joined = torch.logaddexp(target_logsumexp, part_logsumexp)
                    target.mul_(torch.exp(target_logsumexp - joined)[..., None])
                    target.addcmul_(part.to(dtype), torch.exp(part_logsumexp - joined)[..., None])
                    target_logsumexp.copy_(joined)

        exchange.circulate(key, value, visit)
        output = output.to(query.dtype)
        ctx.save_for_backward(query, key, value, output, logsumexp)
        ctx.exchange, ctx.scale, ctx.backend, ctx.key_heads = exchange, scale, backend, key_heads
        return output

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, output, logsumexp = cast(tuple[Tensor, ...], ctx.saved_tensors)
        exchange: KeyValueExchange = ctx.exchange
        backend: AttentionBackend = ctx.backend
        key_heads: Tensor | None = ctx.key_heads
        (gradient,) = grad_outputs
        grad_query = torch.zeros_like(query, dtype=logsumexp.dtype)

        def visit(keys: Tensor, values: Tensor, grad_keys: Tensor, grad_values: Tensor, calls: Calls) -> None:
            keys, values = _served(keys, key_heads), _served(values, key_heads)
            for call in calls:
                of_query, of_key, of_value = backend.backward(
                    _block(query, keys, values, call, ctx.scale),
                    _rows(gradient, call.queries),
                    _rows(output, call.queries),
                    _rows(logsumexp, call.queries, dim=2),
                )
                _rows(grad_query, call.queries).add_(of_query)
                _add_served(_rows(grad_keys, call.keys), of_key, key_heads)
                _add_served(_rows(grad_values, call.keys), of_value, key_heads)

        grad_key, grad_value = exchange.circulate_back(key, value, visit)
        return grad_query.to(query.dtype), grad_key, grad_value, None, None, None, None


def _block(query: Tensor, keys: Tensor, values: Tensor, call: AttentionCall, scale: float) -> Block:
    return Block(
        query=_rows(query, call.queries),
        key=_rows(keys, call.keys),
        value=_rows(values, call.keys),
        causal=call.causal,
        scale=scale,
    )


def _rows(tensor: Tensor, run: TokenRange, dim: int = -2) -> Tensor:
    """Tokens of `run`, along the second to last dimension unless told otherwise."""
    return tensor.narrow(dim, run.start, len(run))


def _served(tensor: Tensor, key_heads: Tensor | None) -> Tensor:
    return tensor if key_heads is None else tensor.index_select(0, key_heads)


def _add_served(target: Tensor, gradient: Tensor, key_heads: Tensor | None) -> None:
    if key_heads is None:
        target.add_(gradient)
    else:
        target.index_add_(0, key_heads, gradient.to(target.dtype))
