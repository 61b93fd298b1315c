"""The ranks that share one packed row.

A `SequenceGroup` is a torch process group together with this process's rank in it. It does not depend on what the ranks
exchange; see `collectives`.
"""

from dataclasses import dataclass
from datetime import timedelta

import torch.distributed as dist

from mrsp_engine.errors import EngineUsageError


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SequenceGroup:
    """Ranks that split the tokens of a row among themselves.

    Attributes:
        process_group: Carries the messages.
        rank: This process's place in the group.
        size: Number of ranks in the group.
    """

    process_group: dist.ProcessGroup
    rank: int
    size: int

    @classmethod
    def of(cls, process_group: dist.ProcessGroup) -> "SequenceGroup":
        """Describe an existing process group that this process belongs to."""
        return cls(
            process_group=process_group,
            rank=dist.get_rank(process_group),
            size=dist.get_world_size(process_group),
        )


def create_sequence_group(size: int, *, timeout: timedelta | None = None) -> SequenceGroup:
    """Divide all ranks into groups of `size` neighbours and return the one this process belongs to.

    Every process of the world must call it.

    Args:
        size: Ranks of a group.
        timeout: How long they wait for each other; torch's default, not that of the world, if None.
    """
    world_size = dist.get_world_size()
    if size < 1 or world_size % size:
        raise EngineUsageError(f"sequence group size {size}: expected a divisor of the number of ranks ({world_size})")
    mine: SequenceGroup | None = None
    for first in range(0, world_size, size):
        ranks = list(range(first, first + size))
        process_group = dist.new_group(ranks, timeout=timeout)
        if dist.get_rank() in ranks and isinstance(process_group, dist.ProcessGroup):
            mine = SequenceGroup.of(process_group)
    if mine is None:
        raise EngineUsageError(f"rank {dist.get_rank()} belongs to no sequence group of size {size}")
    return mine
