"""One block of attention that also returns the log-sum-exp of its scores, and the matching backward.

The log-sum-exp is what lets blocks be joined exactly. Backward is given the output and log-sum-exp of the *joined*
result: with them each block's probabilities come out as its share of the whole, and its gradients simply add up.

Shape legend: K key heads, N query heads per key head, Q queries, T keys, C head channels. Keys and values may be
expanded views over N; their gradients come back summed over it.
"""

from typing import Protocol, cast

import torch
from torch import Tensor


class BlockKernel(Protocol):
    """Forward and backward of one block."""

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, *, causal: bool, scale: float
    ) -> tuple[Tensor, Tensor]:
        """Take query [K, N, Q, C], key and value [K, N, T, C]; return output [K, N, Q, C], log-sum-exp [K, N, Q]."""
        ...

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
        """Return the gradients of query, key and value, each [K, N, …]."""
        ...


class CpuFlashKernel:
    """PyTorch's fused operator for CPUs, float64 included; scores are never stored."""

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, *, causal: bool, scale: float
    ) -> tuple[Tensor, Tensor]:
        """See `BlockKernel.forward`."""
        operator = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        return cast(tuple[Tensor, Tensor], operator(query, key, value, 0.0, causal, scale=scale))

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
        """See `BlockKernel.backward`."""
        operator = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        gradients = operator(gradient, query, key, value, output, logsumexp, 0.0, causal, scale=scale)
        return cast(tuple[Tensor, Tensor, Tensor], gradients)


class MathKernel:
    """The same in plain tensor operations, for every device and type; stores the scores of a block."""

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, *, causal: bool, scale: float
    ) -> tuple[Tensor, Tensor]:
        """See `BlockKernel.forward`."""
        scores = self._scores(query, key, causal=causal, scale=scale)
        logsumexp = torch.logsumexp(scores, dim=-1)
        return torch.exp(scores - logsumexp[..., None]).to(value.dtype) @ value, logsumexp

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
        """See `BlockKernel.backward`."""
        probabilities = torch.exp(self._scores(query, key, causal=causal, scale=scale) - logsumexp[..., None])
        grad_probabilities = (gradient @ value.transpose(-1, -2)).to(probabilities.dtype)
        row_term = (gradient * output).sum(-1, keepdim=True).to(probabilities.dtype)
        grad_scores = (probabilities * (grad_probabilities - row_term) * scale).to(query.dtype)
        grad_value = probabilities.to(gradient.dtype).transpose(-1, -2) @ gradient
        return grad_scores @ key, grad_scores.transpose(-1, -2) @ query, grad_value

    @staticmethod
    def _scores(query: Tensor, key: Tensor, *, causal: bool, scale: float) -> Tensor:
        scores = query @ key.transpose(-1, -2) * scale
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        if causal:
            visible = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
            scores = scores.masked_fill(~visible, float("-inf"))
        return scores


def choose_kernel(device: torch.device) -> BlockKernel:
    """Return the best kernel for a device."""
    return CpuFlashKernel() if device.type == "cpu" else MathKernel()
