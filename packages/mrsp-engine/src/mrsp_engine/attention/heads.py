"""The heads of a model's attention, and which of them a rank computes; arithmetic without tensors."""

from dataclasses import dataclass
from math import gcd


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
        """The key heads that those query heads use."""
        queries = self.query_heads(head_rank, head_ranks)
        per_key = self.query // self.key
        return slice(queries.start // per_key, (queries.stop - 1) // per_key + 1)

    def uneven_key_heads(self, head_rank: int, head_ranks: int) -> list[int] | None:
        """The key head that each run of a rank's query heads uses; None if each serves one run of equal length.

        With 28 query and 4 key heads on 7 ranks the second rank has query heads 4 to 7: three use the first key head,
        one the second. They are computed as four runs of one query head each: [0, 0, 0, 1].
        """
        queries, keys = self.query_heads(head_rank, head_ranks), self.key_heads(head_rank, head_ranks)
        per_key = self.query // self.key
        run = gcd(queries.stop - queries.start, per_key)
        served = [head // per_key - keys.start for head in range(queries.start, queries.stop, run)]
        return None if served == list(range(keys.stop - keys.start)) else served
