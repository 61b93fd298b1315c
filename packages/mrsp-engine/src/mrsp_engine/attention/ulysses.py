"""Splitting attention by heads (Ulysses): ranks exchange their tokens of all heads for all tokens of their heads.

Query heads must divide among the head ranks; key heads need not. A rank receives only the key heads that its query
heads use; a key head that two ranks use goes to both.

Shape legend: H query heads, K key heads, L own tokens, T tokens of all head ranks together, C head channels.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mrsp_engine.attention.heads import AttentionHeads
from mrsp_engine.distributed.collectives import swap
from mrsp_engine.distributed.process_groups import SequenceGroup


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HeadExchange:
    """The exchange among the head ranks that share a slice of the row.

    Attributes:
        group: All ranks that share the row.
        heads: The model's heads.
        members: The ranks that take part in the exchange, this one included, in order.
        lengths: Number of tokens that each member owns.
    """

    group: SequenceGroup
    heads: AttentionHeads
    members: tuple[int, ...]
    lengths: tuple[int, ...]

    def to_heads(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Exchange queries [H, L, C], keys and values [K, L, C] of own tokens for own heads of all tokens [·, T, C]."""
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
        """Exchange back: own heads of all tokens [T, H / ranks, C] for all heads of own tokens [L, H, C]."""
        pieces = [output[:0]] * self.group.size
        rows = [0] * self.group.size
        own_length = self.lengths[self.members.index(self.group.rank)]
        for rank, piece in zip(self.members, output.split(self.lengths), strict=True):
            pieces[rank], rows[rank] = piece, own_length
        received = swap(pieces, rows, self.group)
        return torch.cat([received[rank] for rank in self.members], dim=1)
