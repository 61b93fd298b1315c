"""The flash-attn packages as backends, where they are installed: version 2, and version 3 for Hopper.

Both support grouped heads and expect the token dimension before the head dimension. Their differentiable functions
accept no joined log-sum-exp, so this module calls the two lower-level operators that each package registers with torch
on import. The packages differ in the non-tensor arguments.

Shape legend: K key heads, N query heads per key head, Q queries, T keys, C head channels.
"""

import importlib
import importlib.util
from abc import ABC, abstractmethod
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from mrsp_engine.attention.backends.base import Block, Gradients, Part
from mrsp_engine.attention.backends.torch_fused import flash_refusal

Settings = dict[str, Any]


class _FlashAttentionBackend(ABC):
    """One of the packages: the module with its operators, and the major compute capability that it needs."""

    module: ClassVar[str]
    capability: ClassVar[int]

    def refusal(self, query: Tensor) -> str | None:
        """See `AttentionBackend.refusal`."""
        reason = flash_refusal(query, capability=self.capability)
        package = self.module.partition(".")[0]
        if reason is None and importlib.util.find_spec(package) is None:
            reason = f"needs the package that provides {package}, which is not installed"
        return reason

    def forward(self, block: Block) -> Part:
        """See `AttentionBackend.forward`."""
        operators: Any = importlib.import_module(self.module)
        output, logsumexp, *_ = operators._flash_attn_forward(*_tensors(block), **self._forward_settings(block))
        return cast(Tensor, output).transpose(1, 2), cast(Tensor, logsumexp)

    def backward(self, block: Block, gradient: Tensor, output: Tensor, logsumexp: Tensor) -> Gradients:
        """See `AttentionBackend.backward`."""
        operators: Any = importlib.import_module(self.module)
        tensors = _tensors(block)
        of_query, of_key, of_value = map(torch.empty_like, tensors)
        operators._flash_attn_backward(
            _tokens_first(gradient),
            *tensors,
            _tokens_first(output),
            logsumexp.contiguous(),
            dq=of_query,
            dk=of_key,
            dv=of_value,
            **self._backward_settings(block),
        )
        return of_query.transpose(1, 2), of_key.squeeze(2), of_value.squeeze(2)

    @abstractmethod
    def _forward_settings(self, block: Block) -> Settings: ...

    @abstractmethod
    def _backward_settings(self, block: Block) -> Settings: ...


class FlashAttention2Backend(_FlashAttentionBackend):
    """flash-attn 2: Ampere and later."""

    preference = 30
    module, capability = "flash_attn.flash_attn_interface", 8

    def _forward_settings(self, block: Block) -> Settings:
        return self._settings(block) | {"return_softmax": False}

    def _backward_settings(self, block: Block) -> Settings:
        return self._settings(block) | {"deterministic": False}

    @staticmethod
    def _settings(block: Block) -> Settings:
        return {
            "dropout_p": 0.0,
            "softmax_scale": block.scale,
            "causal": block.causal,
            "window_size_left": -1,
            "window_size_right": -1,
            "softcap": 0.0,
            "alibi_slopes": None,
        }


class FlashAttention3Backend(_FlashAttentionBackend):
    """flash-attn 3: Hopper."""

    preference = 40
    module, capability = "flash_attn_interface", 9

    def _forward_settings(self, block: Block) -> Settings:
        return {"softmax_scale": block.scale, "causal": block.causal}

    def _backward_settings(self, block: Block) -> Settings:
        return {"softmax_scale": block.scale, "is_causal": block.causal}


def _tensors(block: Block) -> tuple[Tensor, Tensor, Tensor]:
    return _tokens_first(block.query), _tokens_first(block.key[:, None]), _tokens_first(block.value[:, None])


def _tokens_first(tensor: Tensor) -> Tensor:
    """[K, heads, tokens, C] to [K, tokens, heads, C], channels contiguous."""
    swapped = tensor.transpose(1, 2)
    return swapped if swapped.stride(-1) == 1 else swapped.contiguous()
