"""Splitting attention by heads (Ulysses): ranks trade their tokens of all heads for all tokens of their heads.

Query heads must divide among the head ranks; key heads need not. A rank is sent the key heads that its query heads look
at and no others, and a key head that two ranks look at goes to both.

Shape legend: H query heads, K key heads, L own tokens, T tokens of all head ranks together, C head channels.
"""

from dataclasses import dataclass
from math import gcd

import torch
from torch import Tensor

from mrsp_engine.collectives import swap
from mrsp_engine.process_groups import SequenceGroup


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionHeads:
    """The heads of a model's attention.

    Attributes:
        query: Number of query heads.
        key: Number of key heads; divides `query`.
        channels: Size of a head.
    """

    query: int
    key: int
    channels: int

    def query_heads(self, head_rank: int, head_ranks: int) -> slice:
        """The query heads of one head rank."""
        per_rank = self.query // head_ranks
        return slice(head_rank * per_rank, (head_rank + 1) * per_rank)

    def key_heads(self, head_rank: int, head_ranks: int) -> slice:
        """The key heads that those query heads look at."""
        queries = self.query_heads(head_rank, head_ranks)
        per_key = self.query // self.key
        return slice(queries.start // per_key, (queries.stop - 1) // per_key + 1)

    def uneven_key_heads(self, head_rank: int, head_ranks: int) -> list[int] | None:
        """Which of a rank's key heads serves each run of its query heads; None if each serves one run of equal length.

        With 28 query and 4 key heads on 7 ranks the second rank has query heads 4 to 7: three look at the first key
        head, one at the second. They are computed as four runs of one query head each: [0, 0, 0, 1].
        """
        queries, keys = self.query_heads(head_rank, head_ranks), self.key_heads(head_rank, head_ranks)
        per_key = self.query // self.key
        run = gcd(queries.stop - queries.start, per_key)
        served = [head // per_key - keys.start for head in range(queries.start, queries.stop, run)]
        return None if served == list(range(keys.stop - keys.start)) else served


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HeadExchange:
    """The trade among the head ranks that share a slice of the row.

    Attributes:
        group: All ranks that share the row.
        heads: Those of the model.
        members: The ranks that trade with this one and itself, in order.
        lengths: Number of tokens that each of the members owns.
    """

    group: SequenceGroup
    heads: AttentionHeads
    members: tuple[int, ...]
    lengths: tuple[int, ...]

    def to_heads(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Trade queries [H, L, C], keys and values [K, L, C] of own tokens for own heads of all tokens [·, T, C]."""
        queries, keys, values = query.transpose(0, 1), key.transpose(0, 1), value.transpose(0, 1)
        pieces = [queries[:0]] * self.group.size
        size = len(self.members)
        for place, rank in enumerate(self.members):
            of_query, of_key = self.heads.query_heads(place, size), self.heads.key_heads(place, size)
            pieces[rank] = torch.cat((queries[:, of_query], keys[:, of_key], values[:, of_key]), dim=1)
        rows = [0] * self.group.size
        for rank, length in zip(self.members, self.lengths, strict=True):
            rows[rank] = length
        whole = torch.cat(swap(pieces, rows, self.group)).transpose(0, 1)
        num_queries = self.heads.query // size
        num_keys = (whole.shape[0] - num_queries) // 2
        own_query, own_key, own_value = whole.split([num_queries, num_keys, num_keys])
        return own_query, own_key, own_value

    def to_tokens(self, output: Tensor) -> Tensor:
        """Trade back: own heads of all tokens [T, H / ranks, C] for all heads of own tokens [L, H, C]."""
        pieces = [output[:0]] * self.group.size
        rows = [0] * self.group.size
        own_length = self.lengths[self.members.index(self.group.rank)]
        for rank, piece in zip(self.members, output.split(self.lengths), strict=True):
            pieces[rank], rows[rank] = piece, own_length
        received = swap(pieces, rows, self.group)
        return torch.cat([received[rank] for rank in self.members], dim=1)
