"""One rank of the trial of the exchange; its place among the others is in the environment, as torchrun would set it.

It joins the others as a run's rank does, adds up numbers that all ranks give, and measures how fast larger ones are
added. What it finds is one line of JSON on its output.
"""

import json
import os
import sys
from datetime import timedelta
from time import perf_counter
from typing import Any

NUM_BYTES = {"cuda": 2**28, "cpu": 2**22}
REPEATS = 3


def try_exchange(device: str, limit_seconds: float) -> dict[str, Any]:
    """Join the ranks and add numbers up.

    Args:
        device: "cuda" or "cpu".
        limit_seconds: How long ranks wait for each other.

    Returns:
        Bytes that a rank sends per second (`bandwidth`), or what went wrong (`problem`).
    """
    import torch
    import torch.distributed as dist

    rank, size, place = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    backend, timeout = "gloo", timedelta(seconds=limit_seconds)
    if device == "cuda":
        torch.cuda.set_device(place)
        backend = "cpu:gloo,cuda:nccl"  # as a run has
    torch.set_num_threads(1)
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(host, port, is_master=False, timeout=timeout)
    dist.init_process_group(
        backend, store=dist.PrefixStore("exchange", store), rank=rank, world_size=size, timeout=timeout
    )
    for kind in dict.fromkeys(("cpu", device)):
        small = torch.full((4,), float(rank + 1), device=kind)
        dist.all_reduce(small)
        expected = size * (size + 1) / 2
        if small.tolist() != [expected] * 4:
            return {"problem": f"the sum over {size} ranks is {small[0].item()}, expected {expected}"}
    large = torch.ones(NUM_BYTES[device] // 4, device=device)
    dist.all_reduce(large)
    seconds: list[float] = []
    for _ in range(REPEATS):
        started = perf_counter()
        dist.all_reduce(large)
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(perf_counter() - started)
    dist.destroy_process_group()
    # Each rank sends the share of a reduction and of a gathering over all.
    return {"bandwidth": 2 * (size - 1) / size * NUM_BYTES[device] / min(seconds)}


def main() -> None:
    """Print the finding."""
    device, limit_seconds = sys.argv[1], float(sys.argv[2])
    try:
        found = try_exchange(device, limit_seconds)
    except Exception as error:  # whatever a backend raises is the finding
        lines = str(error).strip().splitlines()
        found = {"problem": lines[0] if lines else type(error).__name__}
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
