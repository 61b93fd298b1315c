"""Exact attention over a packed row, as the calls of a plan joined by log-sum-exp.

Knows nothing of models or ranks: it is given this rank's queries, all keys and values, and a list of calls.

Shape legend: K key heads, N query heads per key head, L own tokens, S tokens of the row, C head channels.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from mrsp_engine.attention.kernels import BlockKernel, choose_kernel
from mrsp_engine.layout import AttentionCall, TokenRange


def packed_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    calls: Sequence[AttentionCall],
    *,
    scale: float,
    kernel: BlockKernel | None = None,
) -> Tensor:
    """Attend: query [N·K, L, C], key and value [K, S, C]; returns [L, N·K, C], the layout the next projection reads."""
    grouped = query.unflatten(0, (key.shape[0], -1))  # [K, N, L, C]
    kernel = choose_kernel(query.device) if kernel is None else kernel
    output = _PackedAttention.apply(grouped, key, value, tuple(calls), scale, kernel)
    return cast(Tensor, output).permute(2, 0, 1, 3).flatten(1, 2)


def _rows(tensor: Tensor, run: TokenRange) -> Tensor:
    """Tokens of `run`; dimension 2 in every tensor here."""
    return tensor.narrow(2, run.start, run.end - run.start)


class _PackedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        calls: tuple[AttentionCall, ...],
        scale: float,
        kernel: BlockKernel,
    ) -> Tensor:
        num_key_heads, group_size, num_tokens, channels = query.shape
        # Both are laid out token by token, as the fused operator returns and wants them.
        output = query.new_empty((num_tokens, num_key_heads, group_size, channels)).permute(1, 2, 0, 3)
        accumulator = torch.promote_types(query.dtype, torch.float32)
        logsumexp = query.new_empty((num_key_heads, num_tokens, group_size), dtype=accumulator).transpose(1, 2)
        for call in calls:
            part, part_logsumexp = kernel.forward(
                _rows(query, call.queries),
                _expanded(_keys(key, call), group_size),
                _expanded(_keys(value, call), group_size),
                causal=call.causal,
                scale=scale,
            )
            target, target_logsumexp = _rows(output, call.queries), _rows(logsumexp, call.queries)
            if call.merge:
                joined = torch.logaddexp(target_logsumexp, part_logsumexp)
                target.mul_(torch.exp(target_logsumexp - joined)[..., None])
                target.add_(part * torch.exp(part_logsumexp - joined)[..., None])
                target_logsumexp.copy_(joined)
            else:
                target.copy_(part)
                target_logsumexp.copy_(part_logsumexp)
        ctx.save_for_backward(query, key, value, output, logsumexp)
        ctx.calls, ctx.scale, ctx.kernel = calls, scale, kernel
        return output

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        query, key, value, output, logsumexp = cast(tuple[Tensor, ...], ctx.saved_tensors)
        calls: tuple[AttentionCall, ...] = ctx.calls
        kernel: BlockKernel = ctx.kernel
        (gradient,) = grad_outputs
        grad_query, grad_key, grad_value = torch.zeros_like(query), torch.zeros_like(key), torch.zeros_like(value)
        for call in calls:
            of_query, of_key, of_value = kernel.backward(
                _rows(gradient, call.queries),
                _rows(query, call.queries),
                _expanded(_keys(key, call), query.shape[1]),
                _expanded(_keys(value, call), query.shape[1]),
                _rows(output, call.queries),
                _rows(logsumexp, call.queries),
                causal=call.causal,
                scale=ctx.scale,
            )
            _rows(grad_query, call.queries).add_(of_query)
            _keys(grad_key, call).add_(of_key.sum(1))
            _keys(grad_value, call).add_(of_value.sum(1))
        return grad_query, grad_key, grad_value, None, None, None


def _keys(tensor: Tensor, call: AttentionCall) -> Tensor:
    """The call's keys (or values, or their gradients): [K, S, C] to [K, T, C]."""
    return tensor.narrow(1, call.keys.start, len(call.keys))


def _expanded(tensor: Tensor, group_size: int) -> Tensor:
    """Give every query head its key head without copying: [K, T, C] to [K, N, T, C]."""
    return tensor[:, None].expand(-1, group_size, -1, -1)
