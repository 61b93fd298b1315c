"""Attention in joined blocks equals one masked softmax, forward and backward, under every backend."""

import pytest
import torch
from torch import Tensor

from mrsp_engine.attention.backends.base import AttentionBackend, choose_backend, load_backends
from mrsp_engine.attention.exchange import NoExchange
from mrsp_engine.attention.packed import packed_attention
from mrsp_engine.errors import EngineUsageError
from mrsp_engine.layout import GroupLengths, PackedLayout

SCALE = 0.21
LAYOUT = PackedLayout((GroupLengths(37, (5, 9, 0, 1, 70)), GroupLengths(1, (3,)), GroupLengths(8, ())))


def plain_attention(query: Tensor, key: Tensor, value: Tensor, layout: PackedLayout) -> Tensor:
    """Full softmax under an explicit mask, by plain tensor operations; [S, heads, C]."""
    group, home = torch.empty(layout.total), torch.full((layout.total,), -1)
    for number, where in enumerate(layout.ranges):
        group[where.prompt.start : where.responses.end] = number
        for index, branch in enumerate(where.branches):
            home[branch.start : branch.end] = index
    visible = (((home[None] == -1) | (home[None] == home[:, None])) & (group[None] == group[:, None])).tril()
    repeats = query.shape[0] // key.shape[0]
    scores = query @ key.repeat_interleave(repeats, 0).transpose(1, 2) * SCALE
    weights = scores.masked_fill(~visible, float("-inf")).softmax(-1)
    return (weights @ value.repeat_interleave(repeats, 0)).transpose(0, 1)


def largest_difference(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("name", ["cpu_flash", "math"])
@pytest.mark.parametrize(("num_key_heads", "repeats"), [(2, 3), (4, 1), (1, 7)])
def test_equals_masked_softmax(name: str, num_key_heads: int, repeats: int) -> None:
    torch.manual_seed(0)
    query = torch.randn(num_key_heads * repeats, LAYOUT.total, 32, dtype=torch.float64, requires_grad=True)
    key, value = torch.randn(2, num_key_heads, LAYOUT.total, 32, dtype=torch.float64).unbind(0)
    key.requires_grad_()
    value.requires_grad_()
    upstream = torch.randn(LAYOUT.total, num_key_heads * repeats, 32, dtype=torch.float64)
    expected = plain_attention(query, key, value, LAYOUT)
    expected_gradients = torch.autograd.grad(expected, (query, key, value), upstream)

    exchange = NoExchange(LAYOUT.attention_calls())
    backend = choose_backend(query, name)
    actual = packed_attention(query, key, value, exchange, scale=SCALE, backend=backend)
    gradients = torch.autograd.grad(actual, (query, key, value), upstream)

    assert largest_difference(actual, expected) < 1e-13
    for found, wanted in zip(gradients, expected_gradients, strict=True):
        assert largest_difference(found, wanted) < 1e-13


def test_low_precision_accumulates_in_float32() -> None:
    """Joining many parts loses no more precision than bfloat16 inputs themselves."""
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, LAYOUT.total, 32).bfloat16().unbind(0)
    expected = plain_attention(query.double(), key.double(), value.double(), LAYOUT)
    backend = choose_backend(query)
    actual = packed_attention(query, key, value, NoExchange(LAYOUT.attention_calls()), scale=SCALE, backend=backend)
    assert actual.dtype == torch.bfloat16
    assert largest_difference(actual.double(), expected) < 0.01


def test_backends_are_found_chosen_and_refused() -> None:
    query = torch.zeros(1, 1, 4, 32)
    backends: dict[str, AttentionBackend] = load_backends()
    assert {"cpu_flash", "cuda_flash", "cuda_efficient", "flash_attention_2", "flash_attention_3", "math"} <= set(
        backends
    )
    assert choose_backend(query) is backends["cpu_flash"]
    assert choose_backend(query, "math") is backends["math"]
    with pytest.raises(EngineUsageError, match=r"'cuda_flash' computes on CUDA devices, not on cpu; set another"):
        choose_backend(query, "cuda_flash")
    with pytest.raises(EngineUsageError, match=r"'sparse': expected one of .*cpu_flash"):
        choose_backend(query, "sparse")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["cuda_flash", "cuda_efficient", "flash_attention_2", "flash_attention_3", "math"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_cuda_backends_equal_masked_softmax(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    like = torch.zeros(1, 1, 1, 64, dtype=dtype, device="cuda")
    reason = load_backends()[name].refusal(like)
    if reason is not None:
        pytest.skip(f"{name} {reason}")
    tolerance = 0.02 if dtype == torch.bfloat16 else 1e-4
    query = torch.randn(6, LAYOUT.total, 64, dtype=dtype, device="cuda", requires_grad=True)
    key, value = torch.randn(2, 2, LAYOUT.total, 64, dtype=dtype, device="cuda").unbind(0)
    key.requires_grad_()
    value.requires_grad_()
    doubles = [tensor.detach().cpu().double().requires_grad_() for tensor in (query, key, value)]
    expected = plain_attention(*doubles, LAYOUT)
    upstream = torch.randn_like(expected)
    exchange = NoExchange(LAYOUT.attention_calls())
    actual = packed_attention(query, key, value, exchange, scale=SCALE, backend=choose_backend(like, name))
    gradients = torch.autograd.grad(actual, (query, key, value), upstream.to(actual))
    assert largest_difference(actual.cpu().double(), expected) < tolerance
    for found, wanted in zip(gradients, torch.autograd.grad(expected, doubles, upstream), strict=True):
        assert largest_difference(found.cpu().double(), wanted) < tolerance
