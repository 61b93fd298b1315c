"""The flash-attn packages as backends, where they are installed: version 2, and version 3 for Hopper.

Both know grouped heads and take tokens before heads. Their differentiable functions can't be given a joined
log-sum-exp, hence the two operators below them, which each package registers with torch when it is imported.

Shape legend: K key heads, N query heads per key head, Q queries, T keys, C head channels.
"""

import importlib
import importlib.util
from typing import Any, cast

import torch
from torch import Tensor

MOST_CHANNELS = 256


def _refusal(query: Tensor, module: str, capability: int) -> str | None:
    """Refuse for a package that needs devices of this major compute capability or later."""
    if query.device.type != "cuda":
        return f"computes on CUDA devices, not on {query.device.type}"
    if importlib.util.find_spec(module) is None:
        return f"needs the package that provides {module}, which is not installed"
    if query.dtype not in (torch.float16, torch.bfloat16):
        return f"computes in float16 and bfloat16, not in {query.dtype}"
    if query.shape[-1] % 8 or query.shape[-1] > MOST_CHANNELS:
        return f"takes heads of a multiple of 8 up to {MOST_CHANNELS} channels, not {query.shape[-1]}"
    if torch.cuda.get_device_capability(query.device)[0] < capability:
        return f"needs a device of compute capability {capability}.0 or later"
    return None


class FlashAttention2Backend:
    """flash-attn 2: Ampere and later."""

    preference = 30
    module = "flash_attn.flash_attn_interface"

    def refusal(self, query: Tensor) -> str | None:
        """See `AttentionBackend.refusal`."""
        return _refusal(query, "flash_attn", 8)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, *, causal: bool, scale: float
    ) -> tuple[Tensor, Tensor]:
        """See `AttentionBackend.forward`."""
        operators: Any = importlib.import_module(self.module)
        output, logsumexp, *_ = operators._flash_attn_forward(
            _tokens_first(query),
            _tokens_first(key[:, None]),
            _tokens_first(value[:, None]),
            0.0,
            scale,
            causal=causal,
            window_size_left=-1,
            window_size_right=-1,
            softcap=0.0,
            alibi_slopes=None,
            return_softmax=False,
        )
        return cast(Tensor, output).transpose(1, 2), cast(Tensor, logsumexp)

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
        operators: Any = importlib.import_module(self.module)
        queries, keys, values = _tokens_first(query), _tokens_first(key[:, None]), _tokens_first(value[:, None])
        of_query, of_key, of_value = torch.empty_like(queries), torch.empty_like(keys), torch.empty_like(values)
        operators._flash_attn_backward(
            _tokens_first(gradient),
            queries,
            keys,
            values,
            _tokens_first(output),
            logsumexp.contiguous(),
            of_query,
            of_key,
            of_value,
            0.0,
            scale,
            causal,
            -1,
            -1,
            0.0,
            None,
            False,
        )
        return of_query.transpose(1, 2), of_key.squeeze(2), of_value.squeeze(2)


class FlashAttention3Backend:
    """flash-attn 3: Hopper."""

    preference = 40
    module = "flash_attn_interface"

    def refusal(self, query: Tensor) -> str | None:
        """See `AttentionBackend.refusal`."""
        return _refusal(query, self.module, 9)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, *, causal: bool, scale: float
    ) -> tuple[Tensor, Tensor]:
        """See `AttentionBackend.forward`."""
        operators: Any = importlib.import_module(self.module)
        output, logsumexp, *_ = operators._flash_attn_forward(
            _tokens_first(query),
            _tokens_first(key[:, None]),
            _tokens_first(value[:, None]),
            softmax_scale=scale,
            causal=causal,
        )
        return cast(Tensor, output).transpose(1, 2), cast(Tensor, logsumexp)

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
        operators: Any = importlib.import_module(self.module)
        queries, keys, values = _tokens_first(query), _tokens_first(key[:, None]), _tokens_first(value[:, None])
        of_query, of_key, of_value = torch.empty_like(queries), torch.empty_like(keys), torch.empty_like(values)
        operators._flash_attn_backward(
            _tokens_first(gradient),
            queries,
            keys,
            values,
            _tokens_first(output),
            logsumexp.contiguous(),
            dq=of_query,
            dk=of_key,
            dv=of_value,
            softmax_scale=scale,
            is_causal=causal,
        )
        return of_query.transpose(1, 2), of_key.squeeze(2), of_value.squeeze(2)


def _tokens_first(tensor: Tensor) -> Tensor:
    """[K, heads, tokens, C] to [K, tokens, heads, C], channels contiguous."""
    swapped = tensor.transpose(1, 2)
    return swapped if swapped.stride(-1) == 1 else swapped.contiguous()
