"""A forked state is exact: packed rows equal transformers' own layer on every sequence alone, in float64."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor
from transformers.models.qwen3_5 import modeling_qwen3_5
from transformers.models.qwen3_5.configuration_qwen3_5 import Qwen3_5TextConfig
from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5GatedDeltaNet

from mrsp_engine.attention.heads import AttentionHeads
from mrsp_engine.attention.plan import plan_attention
from mrsp_engine.layout import GroupLengths, PackedLayout
from mrsp_engine.linear_attention.gated_delta import PackedGatedDelta, pack_gated_delta
from mrsp_engine.testing.fixtures import use_exact_norms

WIDTH = 24
KERNEL = 4
HEADS = AttentionHeads(query=2, key=1, channels=8)
ROWS: dict[str, tuple[GroupLengths, ...]] = {
    "branches begin inside the window": (GroupLengths(9, (5, 1, 2, 3, 7)),),
    "a prompt shorter than the kernel": (GroupLengths(1, (6, 2)), GroupLengths(2, (1, 9)), GroupLengths(3, (4,))),
    "one token": (GroupLengths(70, (1,)),),
    "longer than a chunk of the rule": (GroupLengths(130, (65, 64, 3, 140)),),
    "branches without tokens": (GroupLengths(5, (0, 4, 0)), GroupLengths(3, (0,)), GroupLengths(4, ())),
}


def make_layer(num_keys: int = 2, num_values: int = 6, *, is_exact: bool = True) -> torch.nn.Module:
    """A layer of float64 whose states last for tens of tokens, in a parent as in a model."""
    config = Qwen3_5TextConfig(
        hidden_size=WIDTH,
        num_hidden_layers=1,
        layer_types=["linear_attention"],
        linear_num_key_heads=num_keys,
        linear_num_value_heads=num_values,
        linear_key_head_dim=8,
        linear_value_head_dim=12,
        linear_conv_kernel_dim=KERNEL,
    )
    torch.manual_seed(0)
    parent = torch.nn.Sequential(Qwen3_5GatedDeltaNet(config, 0)).double()
    with torch.no_grad():
        for name, parameter in parent.named_parameters():
            parameter.copy_(torch.rand_like(parameter) - 4 if name.endswith("A_log") else torch.randn_like(parameter))
    pack_gated_delta(parent)
    if is_exact:
        use_exact_norms(parent)
    return parent


def gradients_of(layer: torch.nn.Module, hidden: Tensor, outputs: Tensor) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(outputs.shape, generator=generator, dtype=torch.float64)
    named = dict(layer.named_parameters()) | {"hidden": hidden}
    found = torch.autograd.grad((weights * outputs).sum(), list(named.values()))
    return {"outputs": outputs.detach()} | dict(zip(named, found, strict=True))


def packed(layer: torch.nn.Module, hidden: Tensor, layout: PackedLayout) -> Tensor:
    return layer[0](hidden[None], attention_plan=plan_attention(layout, HEADS))[0]  # type: ignore[index]


def one_by_one(layer: torch.nn.Module, hidden: Tensor, layout: PackedLayout) -> Tensor:
    """Every branch after its prompt, as transformers computes a sequence."""
    rows: list[Tensor] = []
    for group in layout.ranges:
        prompt = hidden[group.prompt.start : group.prompt.end]
        rows.append(layer[0](prompt[None])[0])  # type: ignore[index]
        for run in group.branches:
            whole = torch.cat((prompt, hidden[run.start : run.end]))
            rows.append(layer[0](whole[None])[0][len(prompt) :])  # type: ignore[index]
    return torch.cat(rows)


def largest_difference(row: str, layer: torch.nn.Module, fault: Callable[[], Any] = nullcontext) -> float:
    layout = PackedLayout(ROWS[row])
    generator = torch.Generator().manual_seed(2)
    hidden = torch.randn((layout.total, WIDTH), generator=generator, dtype=torch.float64, requires_grad=True)
    expected = gradients_of(layer, hidden, one_by_one(layer, hidden, layout))
    with fault():
        actual = gradients_of(layer, hidden, packed(layer, hidden, layout))
    assert actual.keys() == expected.keys()
    shares = [(actual[key] - value).norm() / value.norm() for key, value in expected.items()]
    return float(torch.stack(shares).max())


@pytest.mark.parametrize("heads", [(2, 6), (1, 1), (3, 3)], ids=str)
@pytest.mark.parametrize("row", ROWS)
def test_outputs_and_every_gradient_equal_those_of_separate_sequences(row: str, heads: tuple[int, int]) -> None:
    assert largest_difference(row, make_layer(*heads)) <= 1e-11


right_rule: Callable[..., Any] = modeling_qwen3_5.torch_chunk_gated_delta_rule
right_convolution: Callable[..., Any] = modeling_qwen3_5.causal_conv1d_fn


def shared_state() -> Any:
    """Every branch goes on with the state that the branch before it left."""

    def wrong(*inputs: Tensor, initial_state: Tensor | None, g: Tensor, beta: Tensor, **settings: Any) -> Any:
        if initial_state is None:
            return right_rule(*inputs, initial_state=None, g=g, beta=beta, **settings)
        settings["output_final_state"] = True
        state, read = initial_state[:1], []
        for branch in range(len(g)):
            one = slice(branch, branch + 1)
            rows = [tensor[one] for tensor in inputs]
            found, state = right_rule(*rows, initial_state=state, g=g[one], beta=beta[one], **settings)
            read.append(found)
        return torch.cat(read), state

    return patch.object(modeling_qwen3_5, "torch_chunk_gated_delta_rule", wrong)


def foreign_window() -> Any:
    """A branch's convolution begins with the last tokens of the branch before it."""

    def wrong(columns: Tensor, *settings: Any, **named: Any) -> Tensor:
        if len(columns) > 1:
            ends = columns[:, :, 1 - KERNEL :].roll(1, 0)
            columns = torch.cat((columns[:1], torch.cat((ends, columns[:, :, KERNEL - 1 :]), dim=2)[1:]))
        return right_convolution(columns, *settings, **named)

    return patch.object(modeling_qwen3_5, "causal_conv1d_fn", wrong)


def undecayed_state() -> Any:
    """What a prompt passes on was never forgotten."""

    def wrong(*inputs: Tensor, g: Tensor, **settings: Any) -> Any:
        read, state = right_rule(*inputs, g=g, **settings)
        return read, state if state is None else right_rule(*inputs, g=torch.zeros_like(g), **settings)[1]

    return patch.object(modeling_qwen3_5, "torch_chunk_gated_delta_rule", wrong)


def forgotten_gradient() -> Any:
    """Branches teach their prompt nothing."""

    def wrong(*inputs: Tensor, initial_state: Tensor | None, **settings: Any) -> Any:
        state = None if initial_state is None else initial_state.detach()
        return right_rule(*inputs, initial_state=state, **settings)

    return patch.object(modeling_qwen3_5, "torch_chunk_gated_delta_rule", wrong)


FAULTS: dict[str, Callable[[], Any]] = {
    "a state that is shared instead of forked": shared_state,
    "the window of another branch": foreign_window,
    "a state without its decay": undecayed_state,
    "a state without its gradient": forgotten_gradient,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_seen(fault: str) -> None:
    assert largest_difference("branches begin inside the window", make_layer(), FAULTS[fault]) > 1e-4


def test_without_a_plan_the_layer_is_transformers_own() -> None:
    layer = make_layer(is_exact=False)
    assert isinstance(layer[0], PackedGatedDelta)  # type: ignore[index]
    hidden = torch.randn((2, 11, WIDTH), dtype=torch.float64)
    mask = torch.ones((2, 11), dtype=torch.bool)
    mask[0, :3] = False
    expected = Qwen3_5GatedDeltaNet.forward(layer[0], hidden, attention_mask=mask)  # type: ignore[index]
    assert layer[0](hidden, attention_mask=mask).equal(expected)  # type: ignore[index]


def test_a_plan_takes_one_row_without_a_mask() -> None:
    layer, plan = make_layer(), plan_attention(PackedLayout((GroupLengths(3, (2,)),)), HEADS)
    row = torch.zeros((1, 5, WIDTH), dtype=torch.float64)
    for arguments in ({"hidden_states": row.expand(2, -1, -1)}, {"hidden_states": row, "attention_mask": row[0, :, 0]}):
        with pytest.raises(ValueError, match="one row without mask or cache"):
            layer[0](**arguments, attention_plan=plan)  # type: ignore[index]
