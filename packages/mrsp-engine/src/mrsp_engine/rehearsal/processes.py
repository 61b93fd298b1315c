"""One process for every rank of a rehearsal, on this machine, and the comparison of what they exchanged.

The processes are copies of this one (fork), which takes no time and little memory, and talk over the loopback device.
Real exchanges, those of plain objects, really happen. If all ranks that still run wait in one and their lists of
exchanges don't lead out of it, they would wait forever, and are stopped.
"""

import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode

from mrsp_engine.errors import EngineError, EngineUsageError
from mrsp_engine.rehearsal.memory import Peak
from mrsp_engine.rehearsal.messages import Exchange, find_hang
from mrsp_engine.rehearsal.recorder import StepRecorder

__all__ = ["RankRecord", "rehearse_ranks"]

FAILURE_SECONDS = 2.0
"""How long other ranks are listened to after one has failed."""

ResultT = TypeVar("ResultT")
Program = Callable[[StepRecorder, FakeTensorMode], ResultT]
"""A rank's part: gets the recorder, which is watching, and the mode in which weights are made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankRecord(Generic[ResultT]):
    """What one rank did.

    Attributes:
        result: What its program returned.
        peaks: The peak of memory in every stage.
        operations: Floating-point operations by stage.
        exchanges: What it exchanged, in order.
    """

    result: ResultT
    peaks: dict[str, Peak]
    operations: dict[str, float]
    exchanges: Sequence[Exchange]


@dataclass(slots=True, kw_only=True)
class _RankProcess:
    process: BaseProcess
    connection: Connection
    exchanges: list[Exchange] = field(default_factory=list[Exchange])
    is_waiting: bool = False
    outcome: tuple[Any, dict[str, Peak], dict[str, float]] | None = None


def rehearse_ranks(program: Program[ResultT], num_ranks: int) -> list[RankRecord[ResultT]]:
    """Run a program as every rank of a group and return what each did, in the order of the ranks.

    This process should not have run a backward pass: torch built for CUDA refuses them in copies of one that has.

    Args:
        program: What each rank does, in a process of its own and, if there are several, in a process group of them all.
        num_ranks: Number of ranks.

    Raises:
        EngineUsageError: The ranks would wait for each other forever; or a rank refused its request.
        EngineError: A rank failed.
    """
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory(prefix="rehearsal-") as scratch:
        ranks: list[_RankProcess] = []
        try:
            for rank in range(num_ranks):
                here, there = context.Pipe(duplex=False)
                arguments = (program, rank, num_ranks, Path(scratch) / "meeting", there)
                process = context.Process(target=_act, args=arguments, daemon=True)
                process.start()
                there.close()
                ranks.append(_RankProcess(process=process, connection=here))
            _follow(ranks)
        finally:
            for rank in ranks:
                rank.process.terminate()
                rank.process.join()
                rank.connection.close()
    _refuse_hang(ranks)
    records: list[RankRecord[ResultT]] = []
    for rank in ranks:
        result, peaks, operations = cast(tuple[Any, dict[str, Peak], dict[str, float]], rank.outcome)
        records.append(RankRecord(result=result, peaks=peaks, operations=operations, exchanges=tuple(rank.exchanges)))
    return records


def _follow(ranks: Sequence[_RankProcess]) -> None:
    """Listen to the ranks until all have ended.

    A rank that fails takes others with it, whose connection to it breaks; so the cause is looked for among all of them.
    """
    open_ranks = {rank.connection: (place, rank) for place, rank in enumerate(ranks)}
    failures: list[tuple[int, EngineError]] = []
    while open_ranks:
        ready_ones = wait(list(open_ranks), timeout=FAILURE_SECONDS if failures else None)
        if failures and not ready_ones:
            break
        for ready in ready_ones:
            connection = cast(Connection, ready)
            place, rank = open_ranks[connection]
            kind, value = _receive(connection, place)
            if kind == "exchanges":
                rank.exchanges += value
            elif kind == "waits":
                rank.is_waiting = value
            elif kind == "failed":
                failures.append(value)
                del open_ranks[connection]
            else:
                rank.outcome = value
                del open_ranks[connection]
        if not failures and open_ranks and all(rank.is_waiting for _, rank in open_ranks.values()):
            _refuse_hang(ranks, running=[place for place, _ in open_ranks.values()])
    if failures:
        raise min(failures, key=lambda failure: failure[0])[1]


def _receive(connection: Connection, place: int) -> tuple[str, Any]:
    try:
        return cast(tuple[str, Any], connection.recv())
    except EOFError:
        return "failed", (1, EngineError(f"rank {place} of the rehearsal was killed; is there enough memory for it?"))


def _refuse_hang(ranks: Sequence[_RankProcess], *, running: Sequence[int] = ()) -> None:
    reason = find_hang([rank.exchanges for rank in ranks], running=running)
    if reason is not None:
        raise EngineUsageError(f"the step would hang: {reason}")


def _act(program: Program[Any], rank: int, num_ranks: int, meeting: Path, connection: Connection) -> None:
    """Be one rank."""
    parent = os.getppid()
    torch.set_num_threads(1)  # there are more ranks than cores, and a fork can't use the parent's pool of threads
    recorder: StepRecorder | None = None

    def tell_exchange(is_beginning: bool) -> None:
        assert recorder is not None
        if is_beginning:
            connection.send(("exchanges", recorder.exchanges))
            recorder.exchanges.clear()
        connection.send(("waits", is_beginning))

    try:
        fakes = FakeTensorMode(allow_non_fake_inputs=True)
        recorder = StepRecorder(fakes, tell_exchange)
        if num_ranks > 1:
            os.environ["GLOO_SOCKET_IFNAME"] = "lo"
            dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=num_ranks)
        with recorder:
            result = program(recorder, fakes)
        connection.send(("exchanges", recorder.exchanges))
        connection.send(("done", (result, recorder.memory.peaks, recorder.operations)))
        # Others may still wait for this rank, and would take its end for a failure; the parent ends all ranks.
        while os.getppid() == parent:
            time.sleep(0.1)
    except Exception as error:
        connection.send(("failed", _describe(error)))
    finally:
        connection.close()
        os._exit(0)  # nothing of the parent's may be closed or written here


def _describe(error: Exception) -> tuple[int, EngineError]:
    """How likely an error is only the consequence of another rank's, and the error in one line."""
    exit_code = getattr(error, "exit_code", None)
    if exit_code is not None:
        return 0, (EngineUsageError if exit_code == EngineUsageError.exit_code else EngineError)(str(error))
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    where = "" if place is None else f" ({Path(place.tb_frame.f_code.co_filename).name}, line {place.tb_lineno})"
    reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}{where}"
    return 2, EngineError(f"the step can't be rehearsed: {reason}")
