"""The backends that come with PyTorch: its fused operators for CPU and CUDA, and plain tensor operations.

The operators are those behind `scaled_dot_product_attention`. They are called directly because the function returns no
log-sum-exp and its backward pass accepts no joined one.

Shape legend: K key heads, N query heads per key head, Q queries, T keys, C head channels.
"""

from abc import ABC, abstractmethod
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional

from mrsp_engine.attention.backends.base import Block, Gradients, Part

MOST_FLASH_CHANNELS = 256
EFFICIENT_ALIGNMENT = 32  # The efficient kernel reads log-sum-exps in whole blocks of this many queries.


class _UngroupedBackend(ABC):
    """A fused operator without grouped heads: every query head gets a view of its key head, without a copy."""

    def forward(self, block: Block) -> Part:
        """See `AttentionBackend.forward`."""
        output, logsumexp = self._forward(block, *_expanded(block))
        return output, logsumexp[..., : block.query.shape[2]]  # some operators pad it to whole blocks

    def backward(self, block: Block, gradient: Tensor, output: Tensor, logsumexp: Tensor) -> Gradients:
        """See `AttentionBackend.backward`."""
        of_query, of_keys, of_values = self._backward(block, *_expanded(block), gradient, output, logsumexp)
        return of_query, of_keys.sum(1), of_values.sum(1)

    @abstractmethod
    def _forward(self, block: Block, keys: Tensor, values: Tensor) -> Part: ...

    @abstractmethod
    def _backward(
        self, block: Block, keys: Tensor, values: Tensor, gradient: Tensor, output: Tensor, logsumexp: Tensor
    ) -> Gradients: ...


class CpuFlashBackend(_UngroupedBackend):
    """PyTorch's fused operator for CPUs, float64 included; scores are never stored."""

    preference = 10

    def refusal(self, query: Tensor) -> str | None:
        """See `AttentionBackend.refusal`."""
        return None if query.device.type == "cpu" else f"computes on the CPU, not on {query.device.type}"

    def _forward(self, block: Block, keys: Tensor, values: Tensor) -> Part:
        operator = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        return cast(Part, operator(block.query, keys, values, 0.0, block.causal, scale=block.scale))

    def _backward(
        self, block: Block, keys: Tensor, values: Tensor, gradient: Tensor, output: Tensor, logsumexp: Tensor
    ) -> Gradients:
        operator = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        tensors = gradient, block.query, keys, values, output, logsumexp
        return cast(Gradients, operator(*tensors, 0.0, block.causal, scale=block.scale))


class CudaFlashBackend(_UngroupedBackend):
    """PyTorch's own build of flash attention for CUDA, in half precision."""

    preference = 20

    def refusal(self, query: Tensor) -> str | None:
        """See `AttentionBackend.refusal`."""
        return flash_refusal(query, capability=8)

    def _forward(self, block: Block, keys: Tensor, values: Tensor) -> Part:
        operator = torch.ops.aten._scaled_dot_product_flash_attention
        return cast(Part, operator(block.query, keys, values, 0.0, block.causal, scale=block.scale)[:2])

    def _backward(
        self, block: Block, keys: Tensor, values: Tensor, gradient: Tensor, output: Tensor, logsumexp: Tensor
    ) -> Gradients:
        operator = torch.ops.aten._scaled_dot_product_flash_attention_backward
        # Dropout's random state is part of the signature; without dropout it is never read.
        random_state = torch.zeros(2, dtype=torch.uint64, device=block.query.device)
        gradients = operator(
            gradient,
            block.query,
            keys,
            values,
            output,
            logsumexp.contiguous(),
            None,
            None,
            block.query.shape[2],
            block.key.shape[1],
            0.0,
            block.causal,
            random_state,
            random_state[:0],
            scale=block.scale,
        )
        return cast(Gradients, gradients)


class CudaEfficientBackend(_UngroupedBackend):
    """PyTorch's memory-efficient operator for CUDA: float32, and devices without flash attention."""

    preference = 15

    def refusal(self, query: Tensor) -> str | None:
        """See `AttentionBackend.refusal`."""
        if query.device.type != "cuda":
            return f"computes on CUDA devices, not on {query.device.type}"
        if query.dtype not in (torch.float16, torch.bfloat16, torch.float32):
            return f"computes in float16, bfloat16 and float32, not in {query.dtype}"
        return f"takes heads of a multiple of 8 channels, not {query.shape[-1]}" if query.shape[-1] % 8 else None

    def _forward(self, block: Block, keys: Tensor, values: Tensor) -> Part:
        operator = torch.ops.aten._scaled_dot_product_efficient_attention
        return cast(Part, operator(block.query, keys, values, None, True, 0.0, block.causal, scale=block.scale)[:2])

    def _backward(
        self, block: Block, keys: Tensor, values: Tensor, gradient: Tensor, output: Tensor, logsumexp: Tensor
    ) -> Gradients:
        operator = torch.ops.aten._scaled_dot_product_efficient_attention_backward
        # Padding after the last query is infinity, which gives a probability of 0.
        padding = -block.query.shape[2] % EFFICIENT_ALIGNMENT
        random_state = torch.zeros((), dtype=torch.int64, device=block.query.device)
        gradients = operator(
            gradient,
            block.query,
            keys,
            values,
            None,
            output,
            functional.pad(logsumexp, (0, padding), value=float("inf")).contiguous(),
            random_state,
            random_state,
            0.0,
            [True, True, True, False],
            block.causal,
            scale=block.scale,
        )
        return cast(Gradients, gradients[:3])


class MathBackend:
    """Plain tensor operations, for every device and dtype; stores the scores of a block."""

    preference = 0

    def refusal(self, query: Tensor) -> str | None:
        """See `AttentionBackend.refusal`; nothing is refused."""
        del query

    def forward(self, block: Block) -> Part:
        """See `AttentionBackend.forward`."""
        scores = _scores(block)
        logsumexp = torch.logsumexp(scores, dim=-1)
        return torch.exp(scores - logsumexp[..., None]).to(block.value.dtype) @ block.value[:, None], logsumexp

    def backward(self, block: Block, gradient: Tensor, output: Tensor, logsumexp: Tensor) -> Gradients:
        """See `AttentionBackend.backward`."""
        probabilities = torch.exp(_scores(block) - logsumexp[..., None])
        grad_probabilities = (gradient @ block.value[:, None].transpose(-1, -2)).to(probabilities.dtype)
        row_term = (gradient * output).sum(-1, keepdim=True).to(probabilities.dtype)
        grad_scores = (probabilities * (grad_probabilities - row_term) * block.scale).to(block.query.dtype)
        grad_value = probabilities.to(gradient.dtype).transpose(-1, -2) @ gradient
        grad_key = grad_scores.transpose(-1, -2) @ block.query
        return grad_scores @ block.key[:, None], grad_key.sum(1), grad_value.sum(1)


def flash_refusal(query: Tensor, *, capability: int) -> str | None:
    """The requirements of every build of flash attention; devices need this major compute capability or a later one."""
    if query.device.type != "cuda":
        return f"computes on CUDA devices, not on {query.device.type}"
    if query.dtype not in (torch.float16, torch.bfloat16):
        return f"computes in float16 and bfloat16, not in {query.dtype}"
    channels = query.shape[-1]
    if channels % 8 or channels > MOST_FLASH_CHANNELS:
        return f"takes heads of a multiple of 8 up to {MOST_FLASH_CHANNELS} channels, not {channels}"
    if torch.cuda.get_device_capability(query.device)[0] < capability:
        return f"needs a device of compute capability {capability}.0 or later"
    return None


def _expanded(block: Block) -> tuple[Tensor, Tensor]:
    """Keys and values [K, N, T, C], repeated for every query head of a group."""
    shape = (-1, block.query.shape[1], -1, -1)
    return block.key[:, None].expand(shape), block.value[:, None].expand(shape)


def _scores(block: Block) -> Tensor:
    scores = block.query @ block.key[:, None].transpose(-1, -2) * block.scale
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if block.causal:
        visible = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~visible, float("-inf"))
    return scores
