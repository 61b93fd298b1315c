"""Attention in joined blocks equals one masked softmax, forward and backward, under every kernel and split."""

import pytest
import torch
from torch import Tensor

from mrsp_engine.attention.kernels import BlockKernel, CpuFlashKernel, MathKernel
from mrsp_engine.attention.packed import packed_attention
from mrsp_engine.layout import PackedLayout

SCALE = 0.21


def plain_attention(query: Tensor, key: Tensor, value: Tensor, layout: PackedLayout) -> Tensor:
    """Full softmax under an explicit mask, by plain tensor operations; [S, heads, C]."""
    home = torch.full((layout.total,), -1)
    for number, branch in enumerate(layout.branches):
        home[branch.start : branch.end] = number
    visible = ((home[None] == -1) | (home[None] == home[:, None])).tril()
    repeats = query.shape[0] // key.shape[0]
    scores = query @ key.repeat_interleave(repeats, 0).transpose(1, 2) * SCALE
    weights = scores.masked_fill(~visible, float("-inf")).softmax(-1)
    return (weights @ value.repeat_interleave(repeats, 0)).transpose(0, 1)


def largest_difference(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("kernel", [CpuFlashKernel(), MathKernel()], ids=["flash", "math"])
@pytest.mark.parametrize(("num_key_heads", "repeats"), [(2, 3), (4, 1), (1, 7)])
@pytest.mark.parametrize("num_ranks", [1, 3])
def test_equals_masked_softmax(kernel: BlockKernel, num_key_heads: int, repeats: int, num_ranks: int) -> None:
    torch.manual_seed(0)
    layout = PackedLayout(37, (5, 9, 0, 1, 70))
    query = torch.randn(num_key_heads * repeats, layout.total, 32, dtype=torch.float64, requires_grad=True)
    key, value = torch.randn(2, num_key_heads, layout.total, 32, dtype=torch.float64).unbind(0)
    key.requires_grad_()
    value.requires_grad_()
    upstream = torch.randn(layout.total, num_key_heads * repeats, 32, dtype=torch.float64)

    expected = plain_attention(query, key, value, layout)
    expected_gradients = torch.autograd.grad(expected, (query, key, value), upstream)

    pieces = torch.zeros_like(expected)
    for ranges in layout.split(num_ranks):
        tokens = torch.cat([torch.arange(run.start, run.end) for run in ranges])
        calls = layout.attention_calls(ranges)
        part = packed_attention(query[:, tokens], key, value, calls, scale=SCALE, kernel=kernel)
        pieces = pieces.index_copy(0, tokens, part)
    gradients = torch.autograd.grad(pieces, (query, key, value), upstream)

    assert largest_difference(pieces, expected) < 1e-13
    for actual, wanted in zip(gradients, expected_gradients, strict=True):
        assert largest_difference(actual, wanted) < 1e-13


def test_low_precision_accumulates_in_float32() -> None:
    torch.manual_seed(0)
    layout = PackedLayout(64, (16, 16))
    query, key, value = torch.randn(3, 2, layout.total, 32, dtype=torch.float64).unbind(0)
    expected = plain_attention(query, key, value, layout)
    actual = packed_attention(query.bfloat16(), key.bfloat16(), value.bfloat16(), layout.attention_calls(), scale=SCALE)
    assert actual.dtype == torch.bfloat16
    assert largest_difference(actual.double(), expected) < 0.02
