"""What one rank has to do in every attention layer of one packed row, worked out once per row.

The plan joins a layout's calls with the ranks that share the row. It holds no weights and no activations and serves all
layers, forward and backward.

Shape legend: S tokens of the packed row, L tokens this rank owns.
"""

from dataclasses import dataclass, field
from itertools import accumulate

import torch
from torch import Tensor

from mrsp_engine.collectives import gather_tokens
from mrsp_engine.layout import AttentionCall, PackedLayout, TokenRange
from mrsp_engine.process_groups import SequenceGroup


@dataclass(frozen=True, kw_only=True, eq=False)
class SequenceShards:
    """How a row's tokens lie on the ranks of a group.

    Attributes:
        group: The ranks.
        lengths: Number of tokens on each rank.
        own_tokens: Row indices of this rank's tokens, int64 [L].
        row_order: Indices that turn the ranks' slices, joined in rank order, into row order; int64 [S].
        owners: Rank that owns each token of the row, int64 [S].
    """

    group: SequenceGroup
    lengths: tuple[int, ...]
    own_tokens: Tensor
    row_order: Tensor
    owners: Tensor

    def gather(self, local: Tensor) -> Tensor:
        """Join the ranks' slices [L, …] into the whole row [S, …]; backward sums what the ranks make of it."""
        return gather_tokens(local, self.lengths, self.group).index_select(0, self.row_order)


@dataclass(frozen=True, kw_only=True, eq=False)
class AttentionPlan:
    """The calls of this rank, and how to get the keys and values it doesn't own."""

    calls: tuple[AttentionCall, ...] = field(repr=False)
    shards: SequenceShards | None = None


def plan_attention(
    layout: PackedLayout, *, group: SequenceGroup | None = None, device: torch.device | None = None
) -> AttentionPlan:
    """Work out this rank's part of a packed row; without a group it is the whole row."""
    if group is None or group.size == 1:
        return AttentionPlan(calls=layout.attention_calls())
    by_rank = layout.split(group.size)
    shards = _shard(by_rank, group, layout.total, device)
    return AttentionPlan(calls=layout.attention_calls(by_rank[group.rank]), shards=shards)


def _shard(
    by_rank: tuple[tuple[TokenRange, ...], ...], group: SequenceGroup, total: int, device: torch.device | None
) -> SequenceShards:
    tokens = [
        torch.cat([torch.arange(run.start, run.end) for run in ranges] or [torch.empty(0, dtype=torch.int64)])
        for ranges in by_rank
    ]
    lengths = tuple(len(part) for part in tokens)
    row_order, owners = torch.empty(total, dtype=torch.int64), torch.empty(total, dtype=torch.int64)
    for rank, (part, start) in enumerate(zip(tokens, accumulate(lengths, initial=0), strict=False)):
        row_order[part] = torch.arange(start, start + len(part))
        owners[part] = rank
    return SequenceShards(
        group=group,
        lengths=lengths,
        own_tokens=tokens[group.rank].to(device),
        row_order=row_order.to(device),
        owners=owners.to(device),
    )
