"""Several ranks on one machine, for tests: gloo processes that stay alive and run one call after the other.

A call always ends: with every rank's result, with the reports of failed ranks, or at its time limit with the stack of
every unfinished rank. A deadlock between ranks is thus a test that fails, not one that hangs.
"""

import faulthandler
import functools
import importlib
import importlib.util
import inspect
import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from importlib.metadata import entry_points
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, TypeVar

import torch
import torch.distributed as dist

Result = TypeVar("Result")

SECONDS_TO_START = 120.0
SECONDS_TO_END = 1.0
SECONDS_FOR_OTHER_FAILURES = 2.0
SECONDS_FOR_STACKS = 2.0


class RankError(RuntimeError):
    """A rank raised, died or did not finish in time; the message has its report or its stack."""


class RankPool:
    """Processes connected by gloo, started by the first call and stopped at the end of a `with` block.

    They are forked from a server that starts with the first call of a session: environment variables set after that
    don't reach them. After a failed call all of them are stopped, and the next call starts new ones.

    Args:
        num_ranks: Number of processes.
        timeout_seconds: Limit of each call.
    """

    def __init__(self, num_ranks: int, *, timeout_seconds: float = 180.0) -> None:
        self._num_ranks = num_ranks
        self._timeout_seconds = timeout_seconds
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._processes: list[Any] = []
        self._connections: list[Connection] = []

    def __enter__(self) -> "RankPool":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def call(self, function: Callable[..., Result], *arguments: Any) -> list[Result]:
        """Call `function(*arguments)` on every rank; return what each rank returned.

        The function must be at the top level of its file, which may be a test file that can't be imported by name; the
        file is loaded once. The default process group exists inside the function. Arguments and results are pickled, so
        they may contain tensors and plain containers but no types defined in a test file.

        Raises:
            RankError: A rank failed or the time ran out.
        """
        source = inspect.getsourcefile(function)
        if source is None or "." in function.__qualname__:
            raise ValueError(f"{function.__qualname__}: expected a function at the top level of a file")
        order = pickle.dumps((function.__module__, source, function.__qualname__, arguments))
        try:
            if not self._processes:
                self._start()
                self._collect(SECONDS_TO_START)
            for connection in self._connections:
                connection.send_bytes(order)
            return self._collect(self._timeout_seconds)
        except BaseException:
            for process in self._processes:
                process.kill()
            self.stop()
            raise

    def stop(self) -> None:
        """End the processes; those that don't end soon are killed."""
        for connection in self._connections:
            connection.close()
        deadline = time.monotonic() + SECONDS_TO_END
        for process in self._processes:
            process.join(timeout=max(0.0, deadline - time.monotonic()))
        for process in self._processes:
            if process.is_alive():
                process.kill()
            process.join()
        if self._folder is not None:
            self._folder.cleanup()
        self._folder, self._processes, self._connections = None, [], []

    def _start(self) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(_preloaded_modules())
        self._folder = tempfile.TemporaryDirectory(prefix="mrsp-ranks-")
        for rank in range(self._num_ranks):
            here, there = context.Pipe()
            process = context.Process(
                target=_rank_main,
                args=(there, rank, self._num_ranks, self._folder.name, self._timeout_seconds),
                daemon=True,
            )
            process.start()
            there.close()
            self._processes.append(process)
            self._connections.append(here)

    def _collect(self, limit_seconds: float) -> list[Any]:
        """Wait for every rank; after a failure only briefly, so that failures it causes elsewhere don't hide it."""
        results: dict[int, Any] = {}
        failures: dict[int, str] = {}
        waiting = {connection: rank for rank, connection in enumerate(self._connections)}
        deadline = time.monotonic() + limit_seconds
        while waiting:
            ready = wait(list(waiting), timeout=max(0.0, deadline - time.monotonic()))
            if not ready:
                break
            for connection in ready:
                assert isinstance(connection, Connection)
                rank = waiting.pop(connection)
                try:
                    succeeded, payload = pickle.loads(connection.recv_bytes())
                except (EOFError, ConnectionResetError):
                    succeeded, payload = False, f"died without a report\n{self._stack(rank)}"
                (results if succeeded else failures)[rank] = payload
            if failures:
                deadline = min(deadline, time.monotonic() + SECONDS_FOR_OTHER_FAILURES)
        if failures:
            raise RankError("\n".join(f"rank {rank} failed: {failures[rank]}" for rank in sorted(failures)))
        if waiting:
            stacks = self._stacks(sorted(waiting.values()))
            told = "\n".join(f"stack of rank {rank}:\n{stack}" for rank, stack in stacks.items())
            raise RankError(f"ranks {sorted(stacks)} did not finish in {limit_seconds:.0f} s\n{told}")
        return [results[rank] for rank in sorted(results)]

    def _stacks(self, ranks: list[int]) -> dict[int, str]:
        """The stacks of ranks, as reported by themselves; a rank without one isn't running."""
        for rank in ranks:
            os.kill(self._processes[rank].pid, signal.SIGUSR1)
        deadline = time.monotonic() + SECONDS_FOR_STACKS
        while time.monotonic() < deadline and not all(map(self._stack, ranks)):
            time.sleep(0.05)
        return {rank: self._stack(rank) for rank in ranks}

    def _stack(self, rank: int) -> str:
        assert self._folder is not None
        path = _stack_path(self._folder.name, rank)
        return path.read_text() if path.exists() else ""


def run_on_ranks(
    function: Callable[..., Result], num_ranks: int, *arguments: Any, timeout_seconds: float = 180.0
) -> list[Result]:
    """Call `function(*arguments)` once, in `num_ranks` new processes; see `RankPool.call`."""
    with RankPool(num_ranks, timeout_seconds=timeout_seconds) as ranks:
        return ranks.call(function, *arguments)


def _preloaded_modules() -> list[str]:
    """Modules that the fork server imports once, instead of every rank again: families and models."""
    families = entry_points(group="mrsp_engine.families")
    return ["mrsp_engine.testing.fixtures", "mrsp_engine.tiny.families", *(entry.module for entry in families)]


def _stack_path(folder: str, rank: int) -> Path:
    return Path(folder) / f"stack of rank {rank}"


def _rank_main(connection: Connection, rank: int, num_ranks: int, folder: str, timeout_seconds: float) -> None:
    with _stack_path(folder, rank).open("w") as stack:
        faulthandler.enable(stack)
        faulthandler.register(signal.SIGUSR1, stack)
        try:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
            torch.set_num_threads(1)
            dist.init_process_group(
                "gloo",
                init_method=f"file://{folder}/rendezvous",
                rank=rank,
                world_size=num_ranks,
                timeout=timedelta(seconds=max(timeout_seconds, SECONDS_TO_START)),
            )
            connection.send_bytes(pickle.dumps((True, None)))  # ready
            _answer_calls(connection)
            dist.destroy_process_group()
        except BaseException:
            connection.send_bytes(pickle.dumps((False, traceback.format_exc())))
            raise SystemExit(1) from None
        finally:
            connection.close()


def _answer_calls(connection: Connection) -> None:
    """Until the other end is closed."""
    while True:
        try:
            order = connection.recv_bytes()
        except EOFError:
            return
        module_name, source, qualname, arguments = pickle.loads(order)
        result = getattr(_import(module_name, source), qualname)(*arguments)
        # Plain pickle: the connection's own pickler would share the tensors' memory with a process that is about to
        # end.
        connection.send_bytes(pickle.dumps((True, result)))


@functools.cache
def _import(module_name: str, source: str) -> ModuleType:
    """Import by name, or from the file where the name leads to another file or to none (test files)."""
    try:
        module = importlib.import_module(module_name)
        if module.__file__ is not None and Path(module.__file__).samefile(source):
            return module
    except ImportError:
        pass
    specification = importlib.util.spec_from_file_location(module_name, source)
    if specification is None or specification.loader is None:
        raise ImportError(f"{source} can't be imported")
    module = importlib.util.module_from_spec(specification)
    sys.modules[module_name] = module  # the file's dataclasses look themselves up here
    specification.loader.exec_module(module)
    return module
