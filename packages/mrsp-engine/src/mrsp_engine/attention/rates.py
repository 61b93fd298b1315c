"""Measures a machine for the cost model of `split`: one matrix product and a few messages."""

import time
from collections.abc import Callable

import torch
import torch.distributed as dist

from mrsp_engine.attention.split import MachineRates
from mrsp_engine.distributed.collectives import start_transfer
from mrsp_engine.distributed.process_groups import SequenceGroup

MATRIX_SIZE = {"cpu": 512, "cuda": 4096}
MESSAGE_BYTES = {"cpu": 4 << 20, "cuda": 64 << 20}
NUM_TRIALS = 5


def measure_rates(group: SequenceGroup, device: torch.device, dtype: torch.dtype) -> MachineRates:
    """Measure and agree: every rank of the group must call this; all get the figures of the slowest rank."""
    size = MATRIX_SIZE.get(device.type, MATRIX_SIZE["cuda"])
    left, right = torch.ones((2, size, size), dtype=dtype, device=device).unbind(0)
    num_items = MESSAGE_BYTES.get(device.type, MESSAGE_BYTES["cuda"]) // left.element_size()
    seconds = torch.tensor(
        [
            _shortest(lambda: left @ right, group, device),
            _shortest(lambda: _pass_round(torch.zeros(1, dtype=dtype, device=device), group), group, device),
            _shortest(lambda: _pass_round(torch.zeros(num_items, dtype=dtype, device=device), group), group, device),
        ],
        dtype=torch.float64,
    ).to(device)
    dist.all_reduce(seconds, op=dist.ReduceOp.MAX, group=group.process_group)
    product, small, large = seconds.tolist()
    return MachineRates(
        flops_per_second=2 * size**3 / product,
        bytes_per_second=num_items * left.element_size() / max(large - small, 1e-9),
        message_seconds=small,
    )


def _pass_round(message: torch.Tensor, group: SequenceGroup) -> None:
    following, previous = (group.rank + 1) % group.size, (group.rank - 1) % group.size
    if group.size > 1:
        start_transfer({following: message}, {previous: torch.empty_like(message)}, group).wait()


def _shortest(action: Callable[[], object], group: SequenceGroup, device: torch.device) -> float:
    """Seconds of the fastest of several trials, which all ranks start together; the first one only warms up."""
    trials: list[float] = []
    for _ in range(NUM_TRIALS + 1):
        dist.barrier(group=group.process_group)
        started = time.perf_counter()
        action()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        trials.append(time.perf_counter() - started)
    return min(trials[1:])
