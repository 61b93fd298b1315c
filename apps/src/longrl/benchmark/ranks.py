"""The processes of a benchmark: one, or those started by torchrun."""

import os
from collections.abc import Generator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from longrl.errors import AppUsageError
from mrsp_engine.distributed.process_groups import SequenceGroup

TIMEOUT = timedelta(minutes=30)


@contextmanager
def open_ranks(device: str) -> Generator[tuple[torch.device, SequenceGroup | None]]:
    """Join the ranks started by torchrun; yields this rank's device, and its group, None for a single process.

    Args:
        device: `cpu`, `cuda`, or `auto` for CUDA where available.

    Raises:
        AppUsageError: There is no such device.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise AppUsageError(f"--device {device}: expected auto, cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise AppUsageError("--device cuda: PyTorch finds no CUDA device; use --device cpu")
    kind = "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    own = torch.device(kind, local_rank) if kind == "cuda" else torch.device("cpu")
    if kind == "cuda":
        torch.cuda.set_device(own)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield own, None
        return
    if kind == "cpu":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("nccl" if kind == "cuda" else "gloo", timeout=TIMEOUT)
    try:
        world = dist.group.WORLD
        assert isinstance(world, dist.ProcessGroup)
        yield own, SequenceGroup.of(world)
    finally:
        dist.destroy_process_group()


def is_first(group: SequenceGroup | None) -> bool:
    """Whether this rank writes the output."""
    return group is None or group.rank == 0


def slowest(figures: list[float], group: SequenceGroup | None, device: torch.device) -> list[float]:
    """The largest of every figure over the ranks."""
    if group is None:
        return figures
    tensor = torch.tensor(figures, dtype=torch.float64, device=device)
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=group.process_group)
    found: list[float] = tensor.tolist()
    return found


def same_text(text: str, group: SequenceGroup | None) -> str:
    """The first rank's text, on every rank."""
    if group is None:
        return text
    texts = [text]
    dist.broadcast_object_list(texts, src=0, group=group.process_group)
    return texts[0]
