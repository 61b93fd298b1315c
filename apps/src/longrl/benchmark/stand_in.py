"""Simulated ranks: a process group in which one process acts as one rank of many.

What it sends is counted and dropped; what it receives has the right size and plausible values. All of the engine's own
code for several ranks runs as usual, so its time and memory are those of one rank, without the waiting.
"""

from collections.abc import Generator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from longrl.errors import AppUsageError
from mrsp_engine.distributed.process_groups import SequenceGroup

BACKEND = "stand_in"
VALUE_SCALE = 0.02


class _Done(dist.Work):
    """A work handle that is already finished."""

    def wait(self, timeout: timedelta = timedelta()) -> bool:
        return True

    def is_completed(self) -> bool:
        return True


class StandInGroup(dist.ProcessGroup):
    """The group as seen by one of its ranks.

    Attributes:
        sent_bytes: Bytes sent so far to simulated ranks.
    """

    def __init__(self, rank: int, size: int) -> None:
        super().__init__(rank, size)  # pyright: ignore[reportCallIssue] - the stub declares only another constructor
        self.sent_bytes = 0

    def getBackendName(self) -> str:  # noqa: N802 - named by PyTorch
        """See `torch.distributed.ProcessGroup`."""
        return BACKEND

    def send(self, tensors: list[Tensor], dstRank: int, tag: int = 0) -> dist.Work:
        """Count what is sent."""
        self.sent_bytes += sum(tensor.nbytes for tensor in tensors)
        return _Done()

    def recv(self, tensors: list[Tensor], srcRank: int, tag: int = 0) -> dist.Work:
        """Fill with small numbers, at the speed of memory."""
        for tensor in tensors:
            tensor.fill_(VALUE_SCALE)
        return _Done()


@contextmanager
def stand_in_ranks(rank: int, size: int) -> Generator[tuple[SequenceGroup, StandInGroup]]:
    """Act as one rank of `size` until the block ends.

    Raises:
        AppUsageError: There is no such rank, or this process belongs to a real process group.
    """
    if not 0 <= rank < size:
        raise AppUsageError(f"--rank {rank} of --ranks {size}: expected a rank from 0 to {size - 1}")
    if dist.is_initialized():
        raise AppUsageError("benchmark rank simulates one rank of many in one process; start it without torchrun")
    if BACKEND not in dist.Backend.backend_list:
        dist.Backend.register_backend(BACKEND, _create, devices=["cpu", "cuda"])
    dist.init_process_group(BACKEND, store=dist.HashStore(), rank=rank, world_size=size)
    try:
        group = dist.group.WORLD
        assert isinstance(group, StandInGroup)
        yield SequenceGroup.of(group), group
    finally:
        dist.destroy_process_group()


def _create(store: dist.Store, rank: int, size: int, timeout: timedelta) -> dist.ProcessGroup:
    return StandInGroup(rank, size)


def random_row(num_tokens: int, width: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Embeddings [L, D] with the scale of trained ones."""
    return (VALUE_SCALE * torch.randn(num_tokens, width, device=device)).to(dtype)
