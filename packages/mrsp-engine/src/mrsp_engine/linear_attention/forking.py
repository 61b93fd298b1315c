"""The gated delta rule over a packed row: a group's prompt is computed once, and its state is forked to every branch.

A layer of this kind (Gated Delta Networks, arXiv 2412.06464) first convolves each channel with the few tokens before,
then keeps one matrix per head, S. Token t turns it into (their equation 10)

    S_t = S_{t-1} (α_t (1 - β_t k_t k_tᵀ)) + β_t v_t k_tᵀ

and reads q_t from it. What a branch needs of its prompt is therefore S after the prompt's last token and the last
columns that the convolution saw. All branches of a group start from one copy of both, and their gradients add up in it,
so the result equals that of separate sequences.

The rule and the convolution themselves are transformers' functions, which use flash-linear-attention and causal-conv1d
where these are installed. Independent of models, and of which rank computes which heads.

Shape legend: S row tokens, P prompt tokens, B branches, T tokens of the longest branch, H value heads, K key heads,
E channels of a key, V channels of a value, C = 2KE + HV convolved channels, W width of the convolution.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence
from transformers.models.qwen3_5 import modeling_qwen3_5

from mrsp_engine.layout import GroupRanges, PackedLayout

__all__ = ["DeltaHeads", "forked_delta"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DeltaHeads:
    """The heads of one layer that are computed here.

    Attributes:
        filters: The convolution of their channels, [C, W].
        activation: Name of the function after the convolution.
        served: For each value head, the key head that it uses, int64 [H].
        key_channels: E.
        value_channels: V.
    """

    filters: Tensor
    activation: str
    served: Tensor
    key_channels: int
    value_channels: int


def forked_delta(heads: DeltaHeads, mixed: Tensor, decay: Tensor, beta: Tensor, layout: PackedLayout) -> Tensor:
    """Run the rule over every group of a row.

    Args:
        heads: The heads.
        mixed: Queries, keys and values before the convolution, [S, C].
        decay: log α of every token, [S, H].
        beta: β of every token, [S, H].
        layout: The row.

    Returns:
        What each token reads, [S, H, V].
    """
    pieces = [_forked_group(heads, mixed, decay, beta, group) for group in layout.ranges]
    return torch.cat([piece for of_group in pieces for piece in of_group])


def _forked_group(heads: DeltaHeads, mixed: Tensor, decay: Tensor, beta: Tensor, group: GroupRanges) -> list[Tensor]:
    """The prompt's outputs [P, H, V], and those of each branch that isn't empty."""
    runs = [run for run in group.branches if len(run)]
    prompt = slice(group.prompt.start, group.prompt.end)
    columns_CP = mixed[prompt].T
    read_PHV, state_HEV = _read(heads, columns_CP[None], decay[None, prompt], beta[None, prompt], None, bool(runs))
    if not runs:
        return [read_PHV[0]]
    assert state_HEV is not None
    lengths = [len(run) for run in runs]
    rows = slice(runs[0].start, runs[-1].end)
    branches_BTC, decay_BTH, beta_BTH = (_stacked(tensor[rows], lengths) for tensor in (mixed, decay, beta))
    num_seen = heads.filters.shape[1] - 1
    seen_CW = pad(columns_CP, (num_seen, 0))[:, columns_CP.shape[1] :]  # a short prompt has zeros before it
    columns_BCT = torch.cat((seen_CW.expand(len(runs), -1, -1), branches_BTC.transpose(1, 2)), dim=2)
    state_BHEV = state_HEV.expand(len(runs), -1, -1, -1).contiguous()
    read_BTHV, _ = _read(heads, columns_BCT, decay_BTH, beta_BTH, state_BHEV, False)
    return [read_PHV[0], *(of_branch[:length] for of_branch, length in zip(read_BTHV, lengths, strict=True))]


def _read(
    heads: DeltaHeads, columns: Tensor, decay: Tensor, beta: Tensor, state: Tensor | None, returns_state: bool
) -> tuple[Tensor, Tensor | None]:
    """Convolve columns [B, C, …T] and run the rule over their last T tokens; returns [B, T, H, V] and the last state.

    Columns before the last T are only seen by the convolution.
    """
    convolved_BCT = modeling_qwen3_5.causal_conv1d_fn(columns, heads.filters, None, activation=heads.activation)
    convolved_BTC = convolved_BCT[:, :, -decay.shape[1] :].transpose(1, 2)
    num_value = len(heads.served) * heads.value_channels
    num_key = (convolved_BTC.shape[2] - num_value) // 2
    queries, keys, values = convolved_BTC.split((num_key, num_key, num_value), dim=2)
    return modeling_qwen3_5.torch_chunk_gated_delta_rule(
        queries.unflatten(2, (-1, heads.key_channels)).index_select(2, heads.served),
        keys.unflatten(2, (-1, heads.key_channels)).index_select(2, heads.served),
        values.unflatten(2, (-1, heads.value_channels)),
        g=decay,
        beta=beta,
        initial_state=state,
        output_final_state=returns_state,
        use_qk_l2norm_in_kernel=True,
    )


def _stacked(rows: Tensor, lengths: Sequence[int]) -> Tensor:
    """Consecutive branches [rows, …] as a batch [B, T, …], with zeros after the shorter ones."""
    return pad_sequence(list(rows.split(list(lengths))), batch_first=True)
