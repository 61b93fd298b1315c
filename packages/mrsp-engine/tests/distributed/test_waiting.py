"""What a process waits for is known while it waits, and only then."""

import sys
import threading
import time
import traceback
from typing import Any

import pytest
import torch
import torch.distributed as dist

from mrsp_engine.distributed.collectives import start_transfer
from mrsp_engine.distributed.process_groups import SequenceGroup
from mrsp_engine.distributed.waiting import find_unfinished, name_exchange
from mrsp_engine.testing.fixtures import run_on_ranks


def wait_in(kind: str) -> tuple[list[Any], list[str]]:
    """The first rank waits for the other one, which comes when the first has looked at itself twice."""
    assert isinstance(dist.group.WORLD, dist.ProcessGroup)
    group = SequenceGroup.of(dist.group.WORLD)
    store, waiting = group.process_group.get_group_store(), threading.get_ident()
    seen, names = list[Any](), list[str]()

    def look() -> None:
        while not find_unfinished():
            time.sleep(0.01)
        for _ in range(2):
            time.sleep(0.1)
            seen.append(find_unfinished())
            frames = [frame for frame, _ in traceback.walk_stack(sys._current_frames()[waiting])]
            names.append(name_exchange(frames, waiting))
        store.set(f"looked at {kind}", "")

    dist.all_reduce(torch.ones(3))
    until_nothing_is_unfinished()
    thread = threading.Thread(target=look)
    if group.rank == 0:
        thread.start()
    else:
        store.wait([f"looked at {kind}"])
    if kind == "all_reduce":
        dist.all_reduce(torch.ones(3))
    elif group.rank == 0:
        start_transfer({}, {1: torch.empty(3)}, group).wait()
    else:
        start_transfer({0: torch.ones(3)}, {}, group).wait()
    if group.rank == 0:
        thread.join()
    until_nothing_is_unfinished()
    return seen, names


def until_nothing_is_unfinished() -> None:
    """The end of an exchange is written down a little later; if it never were, the call would run out of time."""
    while find_unfinished():
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "name"), [("all_reduce", "all_reduce"), ("messages", "messages between ranks")])
def test_what_a_rank_waits_for(kind, name):
    (seen, names), _ = run_on_ranks(wait_in, 2, kind)
    assert len(seen[0]) == 1
    assert seen[0] == seen[1]
    assert names == [name, name]
