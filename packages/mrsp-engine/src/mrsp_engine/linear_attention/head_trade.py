"""Splitting linear attention over ranks: each gives its tokens of all heads for all tokens of some heads.

A state runs through all tokens in order, so every rank computes whole rows, for its share of the value heads. Shares
may be uneven, and a rank beyond the number of heads has none, so any number of ranks is exact; convolutions and states
never cross ranks. Tokens may be distributed in any way: rows are put in order on arrival.

Shape legend: S row tokens, L own tokens, H value heads (h of this rank), V channels of a head, C channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from mrsp_engine.attention.plan import SequenceShards
from mrsp_engine.distributed.collectives import swap

__all__ = ["LinearHeadTrade", "share_heads"]


def share_heads(num_heads: int, num_ranks: int) -> list[slice]:
    """The value heads of each rank."""
    bounds = [num_heads * rank // num_ranks for rank in range(num_ranks + 1)]
    return [slice(start, stop) for start, stop in pairwise(bounds)]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LinearHeadTrade:
    """The exchange of one row.

    Attributes:
        shards: Who owns which tokens.
        num_heads: H.
    """

    shards: SequenceShards
    num_heads: int

    @property
    def heads(self) -> list[slice]:
        """The value heads of each rank."""
        return share_heads(self.num_heads, self.shards.group.size)

    def to_heads(self, pieces: Sequence[Tensor]) -> Tensor:
        """Send each rank what its heads need of own tokens, [L, C of its heads]; returns own heads' [S, C] in order."""
        received = torch.cat(swap(pieces, self._lengths(), self.shards.group))
        arrival = torch.argsort(torch.argsort(self.shards.owners, stable=True))
        return received.index_select(0, arrival.to(received.device))

    def to_tokens(self, read: Tensor) -> Tensor:
        """Send own heads of all tokens [S, h, V] back; returns all heads of own tokens, [L, H, V]."""
        group, owners = self.shards.group, self.shards.owners
        # Ranks have different numbers of heads, so a message's rows are heads of tokens.
        pieces = [
            read.index_select(0, torch.nonzero(owners == rank).squeeze(1).to(read.device)).flatten(0, 1)
            for rank in range(group.size)
        ]
        own_length = len(self.shards.own_tokens)
        numbers = [heads.stop - heads.start for heads in self.heads]
        received = swap(pieces, [own_length * number for number in numbers], group)
        of_ranks = [
            part.reshape(own_length, number, read.shape[2]) for part, number in zip(received, numbers, strict=True)
        ]
        return torch.cat(of_ranks, dim=1)

    def _lengths(self) -> list[int]:
        group = self.shards.group
        lengths: list[int] = torch.bincount(self.shards.owners, minlength=group.size).tolist()
        return lengths
