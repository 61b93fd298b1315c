"""What one rank computes in every attention layer of one packed row, planned once per row.

The plan combines a layout's calls with the ranks that share the row. It holds no weights and no activations, and all
layers use it, in the forward and the backward pass.

Shape legend: S tokens of the packed row, L tokens this rank owns.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mrsp_engine.attention.exchange import GatherExchange, KeyValueExchange, NoExchange, RingExchange
from mrsp_engine.attention.heads import AttentionHeads
from mrsp_engine.attention.split import AttentionSettings, RowSplit, choose_split
from mrsp_engine.attention.ulysses import HeadExchange
from mrsp_engine.distributed.process_groups import SequenceGroup
from mrsp_engine.errors import EngineUsageError
from mrsp_engine.layout import PackedLayout, TokenRange


@dataclass(frozen=True, kw_only=True, eq=False)
class SequenceShards:
    """How a row's tokens are distributed over the ranks of a group.

    Attributes:
        group: The ranks.
        split: How they divide attention.
        own_tokens: Row indices of this rank's tokens, in row order, int64 [L].
        owners: Rank that owns each token of the row, int64 [S], on the CPU.
    """

    group: SequenceGroup
    split: RowSplit
    own_tokens: Tensor
    owners: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class AttentionPlan:
    """The calls of this rank, and how it gets the keys and values it doesn't own.

    Attributes:
        layout: The whole row.
        exchange: Gives this rank all keys and values, with the calls on them.
        head_exchange: How heads are exchanged for tokens before and after attention, if heads are split.
        key_heads: See `packed_attention`.
        shards: Who owns what; None on one rank.
        backend: Name of the attention backend; the best one if None.
    """

    layout: PackedLayout
    exchange: KeyValueExchange = field(repr=False)
    head_exchange: HeadExchange | None = None
    key_heads: Tensor | None = None
    shards: SequenceShards | None = None
    backend: str | None = None


def plan_attention(
    layout: PackedLayout,
    heads: AttentionHeads,
    *,
    group: SequenceGroup | None = None,
    settings: AttentionSettings | None = None,
    device: torch.device | None = None,
    device_type: str | None = None,
    dtype: torch.dtype = torch.float32,
) -> AttentionPlan:
    """Plan this rank's part of a packed row; without a group it is the whole row.

    Args:
        layout: The row.
        heads: The model's heads.
        group: The ranks that share the row.
        settings: What is set by hand.
        device: Where the model is.
        device_type: The kind of device by whose speed the row is divided; that of `device` if None.
        dtype: Type of keys and values.

    Raises:
        EngineUsageError: The settings are impossible with these heads and ranks, or the row is too short for them.
    """
    settings, device = settings or AttentionSettings(), device or torch.device("cpu")
    if group is None or group.size == 1:
        calls = NoExchange(layout.attention_calls())
        return AttentionPlan(layout=layout, exchange=calls, backend=settings.backend)
    split, by_rank = divide_row(
        layout, heads, group.size, settings=settings, item_bytes=dtype.itemsize, device_type=device_type or device.type
    )
    token_rank, head_rank = divmod(group.rank, split.head_ranks)
    members = tuple(range(token_rank * split.head_ranks, (token_rank + 1) * split.head_ranks))
    uneven = heads.uneven_key_heads(head_rank, split.head_ranks)
    trade = HeadExchange(
        group=group, heads=heads, members=members, lengths=tuple(_length(by_rank[rank]) for rank in members)
    )
    owners = torch.empty(layout.total, dtype=torch.int64)
    for rank, ranges in enumerate(by_rank):
        owners[_indices(ranges)] = rank
    return AttentionPlan(
        layout=layout,
        exchange=_plan_exchange(layout, group, split, device),
        head_exchange=trade if split.head_ranks > 1 else None,
        key_heads=None if uneven is None else torch.tensor(uneven, device=device),
        shards=SequenceShards(
            group=group, split=split, own_tokens=_indices(by_rank[group.rank]).to(device), owners=owners
        ),
        backend=settings.backend,
    )


def divide_row(
    layout: PackedLayout,
    heads: AttentionHeads,
    num_ranks: int,
    *,
    settings: AttentionSettings,
    item_bytes: int,
    device_type: str,
) -> tuple[RowSplit, tuple[tuple[TokenRange, ...], ...]]:
    """How ranks divide a row, and the tokens of each.

    Raises:
        EngineUsageError: The settings are impossible with these heads and ranks, or the row is too short for them.
    """
    split = choose_split(layout, heads, num_ranks, settings, item_bytes=item_bytes, device_type=device_type)
    by_rank = layout.split(split.token_ranks, split.head_ranks)
    if not all(by_rank):
        # The models' own layers can't compute an empty sequence.
        raise EngineUsageError(
            f"a row of {layout.total} tokens leaves some of {num_ranks} ranks without any; let fewer ranks share a row "
            "(sequence_ranks), or pack more groups into a row (row_tokens)"
        )
    return split, by_rank


def _plan_exchange(
    layout: PackedLayout, group: SequenceGroup, split: RowSplit, device: torch.device
) -> KeyValueExchange:
    """The exchange among the ranks that have the same heads but different tokens."""
    if split.token_ranks == 1:
        return NoExchange(layout.attention_calls())
    place, head_rank = divmod(group.rank, split.head_ranks)
    ranks = [head_rank + other * split.head_ranks for other in range(split.token_ranks)]
    slices = layout.split(split.token_ranks)
    own = slices[place]
    if split.exchange == "ring":
        held = [slices[(place - step) % split.token_ranks] for step in range(split.token_ranks)]
        return RingExchange(
            group=group,
            ring=ranks,
            lengths=[_length(ranges) for ranges in slices],
            calls_by_step=[layout.attention_calls(own, keys) for keys in held],
        )
    return GatherExchange(
        group=group,
        slices={rank: _indices(ranges).to(device) for rank, ranges in zip(ranks, slices, strict=True)},
        own_calls=tuple(call for call in layout.attention_calls(own, own) if call.causal),
        row_calls=tuple(call for call in layout.attention_calls(own) if not call.causal),
    )


def _length(ranges: Sequence[TokenRange]) -> int:
    return sum(map(len, ranges))


def _indices(ranges: Sequence[TokenRange]) -> Tensor:
    return torch.cat([torch.arange(run.start, run.end) for run in ranges] or [torch.empty(0, dtype=torch.int64)])
