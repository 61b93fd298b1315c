"""The backends that come with PyTorch: its fused operators for CPU and CUDA, and plain tensor operations.

The operators are those behind `scaled_dot_product_attention`. They are called directly because the function returns no
log-sum-exp and its backward can't be given the joined one.

Shape legend: K key heads, N query heads per key head, Q queries, T keys, C head channels.
"""

from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional

MOST_FLASH_CHANNELS = 256
EFFICIENT_ALIGNMENT = 32  # The efficient kernel reads log-sum-exps in whole blocks of this many queries.


class CpuFlashBackend:
    """PyTorch's fused operator for CPUs, float64 included; scores are never stored."""

    preference = 10

    def refusal(self, query: Tensor) -> str | None:
        """See `AttentionBackend.refusal`."""
        return None if query.device.type == "cpu" else f"computes on the CPU, not on {query.device.type}"

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, *, causal: bool, scale: float
    ) -> tuple[Tensor, Tensor]:
        """See `AttentionBackend.forward`."""
        operator = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        num_heads = query.shape[1]
        parts = operator(query, _expanded(key, num_heads), _expanded(value, num_heads), 0.0, causal, scale=scale)
        return cast(tuple[Tensor, Tensor], parts)

    def backward(
        self,
        gradient: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        output: Tensor,
        logsumexp: Tensor,
        *,
        causal: bool,
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See `AttentionBackend.backward`."""
        operator = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        num_heads = query.shape[1]
        keys, values = _expanded(key, num_heads), _expanded(value, num_heads)
        of_query, of_keys, of_values = cast(
            tuple[Tensor, ...],
            operator(gradient, query, keys, values, output, logsumexp, 0.0, causal, scale=scale),
        )
        return of_query, of_keys.sum(1), of_values.sum(1)


class CudaFlashBackend:
    """PyTorch's own build of flash attention for CUDA, in half precision."""

    preference = 20

    def refusal(self, query: Tensor) -> str | None:
        """See `AttentionBackend.refusal`."""
        if query.device.type != "cuda":
            return f"computes on CUDA devices, not on {query.device.type}"
        if query.dtype not in (torch.float16, torch.bfloat16):
            return f"computes in float16 and bfloat16, not in {query.dtype}"
        channels = query.shape[-1]
        if channels % 8 or channels > MOST_FLASH_CHANNELS:
            return f"takes heads of a multiple of 8 up to {MOST_FLASH_CHANNELS} channels, not {channels}"
        if torch.cuda.get_device_capability(query.device) < (8, 0):
            return "needs a device of compute capability 8.0 or later"
        return None

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, *, causal: bool, scale: float
    ) -> tuple[Tensor, Tensor]:
        """See `AttentionBackend.forward`."""
        operator = torch.ops.aten._scaled_dot_product_flash_attention
        num_heads = query.shape[1]
        parts = operator(query, _expanded(key, num_heads), _expanded(value, num_heads), 0.0, causal, scale=scale)
        return cast(Tensor, parts[0]), cast(Tensor, parts[1])[..., : query.shape[2]]

    def backward(
        self,
        gradient: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        output: Tensor,
        logsumexp: Tensor,
        *,
        causal: bool,
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See `AttentionBackend.backward`."""
        operator = torch.ops.aten._scaled_dot_product_flash_attention_backward
        num_heads = query.shape[1]
        # Dropout's random state is part of the signature; without dropout it is never read.
        random_state = torch.zeros(2, dtype=torch.uint64, device=query.device)
        of_query, of_keys, of_values = cast(
            tuple[Tensor, ...],
            operator(
                gradient,
                query,
                _expanded(key, num_heads),
                _expanded(value, num_heads),
                output,
                logsumexp.contiguous(),
                None,
                None,
                query.shape[2],
                key.shape[1],
                0.0,
                causal,
                random_state,
                random_state[:0],
                scale=scale,
            ),
        )
        return of_query, of_keys.sum(1), of_values.sum(1)


class CudaEfficientBackend:
    """PyTorch's memory-efficient operator for CUDA: float32, and devices without flash attention."""

    preference = 15

    def refusal(self, query: Tensor) -> str | None:
        """See `AttentionBackend.refusal`."""
        if query.device.type != "cuda":
            return f"computes on CUDA devices, not on {query.device.type}"
        if query.dtype not in (torch.float16, torch.bfloat16, torch.float32):
            return f"computes in float16, bfloat16 and float32, not in {query.dtype}"
        return f"takes heads of a multiple of 8 channels, not {query.shape[-1]}" if query.shape[-1] % 8 else None

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, *, causal: bool, scale: float
    ) -> tuple[Tensor, Tensor]:
        """See `AttentionBackend.forward`."""
        operator = torch.ops.aten._scaled_dot_product_efficient_attention
        num_heads = query.shape[1]
        keys, values = _expanded(key, num_heads), _expanded(value, num_heads)
        parts = operator(query, keys, values, None, True, 0.0, causal, scale=scale)
        return cast(Tensor, parts[0]), cast(Tensor, parts[1])[..., : query.shape[2]]

    def backward(
        self,
        gradient: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        output: Tensor,
        logsumexp: Tensor,
        *,
        causal: bool,
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See `AttentionBackend.backward`."""
        operator = torch.ops.aten._scaled_dot_product_efficient_attention_backward
        num_heads = query.shape[1]
        # Behind the last query infinity, which gives a probability of 0.
        padding = -query.shape[2] % EFFICIENT_ALIGNMENT
        random_state = torch.zeros((), dtype=torch.int64, device=query.device)
        of_query, of_keys, of_values, _ = cast(
            tuple[Any, ...],
            operator(
                gradient,
                query,
                _expanded(key, num_heads),
                _expanded(value, num_heads),
                None,
                output,
                functional.pad(logsumexp, (0, padding), value=float("inf")).contiguous(),
                random_state,
                random_state,
                0.0,
                [True, True, True, False],
                causal,
                scale=scale,
            ),
        )
        return of_query, of_keys.sum(1), of_values.sum(1)


class MathBackend:
    """The same in plain tensor operations, for every device and type; stores the scores of a block."""

    preference = 0

    def refusal(self, query: Tensor) -> str | None:
        """See `AttentionBackend.refusal`; nothing is refused."""
        del query

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, *, causal: bool, scale: float
    ) -> tuple[Tensor, Tensor]:
        """See `AttentionBackend.forward`."""
        scores = self._scores(query, key, causal=causal, scale=scale)
        logsumexp = torch.logsumexp(scores, dim=-1)
        return torch.exp(scores - logsumexp[..., None]).to(value.dtype) @ value[:, None], logsumexp

    def backward(
        self,
        gradient: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        output: Tensor,
        logsumexp: Tensor,
        *,
        causal: bool,
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See `AttentionBackend.backward`."""
        probabilities = torch.exp(self._scores(query, key, causal=causal, scale=scale) - logsumexp[..., None])
        grad_probabilities = (gradient @ value[:, None].transpose(-1, -2)).to(probabilities.dtype)
        row_term = (gradient * output).sum(-1, keepdim=True).to(probabilities.dtype)
        grad_scores = (probabilities * (grad_probabilities - row_term) * scale).to(query.dtype)
        grad_value = probabilities.to(gradient.dtype).transpose(-1, -2) @ gradient
        grad_key = grad_scores.transpose(-1, -2) @ query
        return grad_scores @ key[:, None], grad_key.sum(1), grad_value.sum(1)

    @staticmethod
    def _scores(query: Tensor, key: Tensor, *, causal: bool, scale: float) -> Tensor:
        scores = query @ key[:, None].transpose(-1, -2) * scale
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        if causal:
            visible = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
            scores = scores.masked_fill(~visible, float("-inf"))
        return scores


def _expanded(tensor: Tensor, num_heads: int) -> Tensor:
    """Give every query head its key head without copying: [K, T, C] to [K, N, T, C]."""
    return tensor[:, None].expand(-1, num_heads, -1, -1)
