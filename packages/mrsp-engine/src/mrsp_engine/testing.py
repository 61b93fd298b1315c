"""Tools for tests: several ranks on one machine, norms that keep float64, a video of noise, keys of no video.

Meant for this package's tests and for those of packages that bring a family or an attention of their own.
"""

import hashlib
import importlib
import importlib.util
import inspect
import multiprocessing
import os
import pickle
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from datetime import timedelta
from importlib.metadata import entry_points
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import nn

from mrsp_engine.embeddings.key import EmbeddingKey

Result = TypeVar("Result")

SECONDS_FOR_OTHER_FAILURES = 2.0


class RankError(RuntimeError):
    """A rank raised, died or did not finish in time; the message holds what it reported."""


def run_on_ranks(
    function: Callable[..., Result], num_ranks: int, *arguments: Any, timeout_seconds: float = 180.0
) -> list[Result]:
    """Call `function(*arguments)` in `num_ranks` new processes joined by gloo; return what each rank returned.

    The function must stand at the top level of its file, which may be a test file that can't be imported by name.
    Inside it the default process group exists. Arguments and results are pickled, so they may hold tensors and plain
    containers but no types of a test file. The processes are forked from a server that starts with the first call of a
    session: environment variables set after that don't reach them. If one rank fails, the others are stopped and the
    failure is raised.

    Raises:
        RankError: A rank failed or the time ran out.
    """
    source = inspect.getsourcefile(function)
    if source is None or "." in function.__qualname__:
        raise ValueError(f"{function.__qualname__}: expected a function at the top level of a file")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_preloaded_modules())
    with tempfile.TemporaryDirectory(prefix="mrsp-ranks-") as folder:
        receivers: dict[Connection, int] = {}
        processes: list[Any] = []
        for rank in range(num_ranks):
            receiver, sender = context.Pipe(duplex=False)
            place = (rank, num_ranks, str(Path(folder) / "rendezvous"), timeout_seconds)
            name = (function.__module__, source, function.__qualname__)
            process = context.Process(target=_rank_main, args=(sender, place, name, arguments), daemon=True)
            process.start()
            sender.close()
            receivers[receiver] = rank
            processes.append(process)
        try:
            return _collect(receivers, time.monotonic() + timeout_seconds)
        finally:
            for process in processes:
                process.join(timeout=1.0)
                if process.is_alive():
                    process.kill()
                    process.join()


def _preloaded_modules() -> list[str]:
    """What the server that ranks are forked from imports once, instead of every rank again: the engine's families."""
    return ["mrsp_engine.testing", *(entry.module for entry in entry_points(group="mrsp_engine.families"))]


def _collect(receivers: dict[Connection, int], deadline: float) -> list[Any]:
    """Wait for every rank; after a failure only a moment longer, so that the ranks it dragged along don't hide it."""
    results: dict[int, Any] = {}
    failures: dict[int, str] = {}
    waiting = dict(receivers)
    while waiting:
        ready = wait(list(waiting), timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            break
        for receiver in ready:
            assert isinstance(receiver, Connection)
            rank = waiting.pop(receiver)
            try:
                succeeded, payload = pickle.loads(receiver.recv_bytes())
            except EOFError:
                succeeded, payload = False, "died without a word"
            (results if succeeded else failures)[rank] = payload
        if failures:
            deadline = min(deadline, time.monotonic() + SECONDS_FOR_OTHER_FAILURES)
    if failures:
        raise RankError("\n".join(f"rank {rank} failed: {failures[rank]}" for rank in sorted(failures)))
    if waiting:
        raise RankError(f"ranks {sorted(waiting.values())} did not finish in time")
    return [results[rank] for rank in sorted(results)]


def _rank_main(
    sender: Connection,
    place: tuple[int, int, str, float],
    name: tuple[str, str, str],
    arguments: tuple[Any, ...],
) -> None:
    rank, num_ranks, rendezvous, timeout_seconds = place
    try:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        torch.set_num_threads(1)
        dist.init_process_group(
            "gloo",
            init_method=f"file://{rendezvous}",
            rank=rank,
            world_size=num_ranks,
            timeout=timedelta(seconds=timeout_seconds),
        )
        module_name, source, qualname = name
        result = getattr(_import(module_name, source), qualname)(*arguments)
        dist.barrier()
        dist.destroy_process_group()
        # Plain pickle: the connection's own pickler would share the tensors' memory with a process about to end.
        sender.send_bytes(pickle.dumps((True, result)))
    except BaseException:
        sender.send_bytes(pickle.dumps((False, traceback.format_exc())))
        raise SystemExit(1) from None
    finally:
        sender.close()


def _import(module_name: str, source: str) -> ModuleType:
    """Import by name, or from the file where the name leads elsewhere or nowhere (test files)."""
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
    sys.modules[module_name] = module  # dataclasses of the file look themselves up here
    specification.loader.exec_module(module)
    return module


def use_exact_norms(model: nn.Module) -> None:
    """Replace a model's RMS norms by ones that compute in the weights' own type.

    The norms of transformers pass through float32 whatever the model's type. That is right for training and hides
    everything below 1e-7 from a comparison in float64.
    """
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child).__name__.endswith("RMSNorm") and not isinstance(child, nn.RMSNorm):
                weight = child.get_parameter("weight")
                exact = nn.RMSNorm(weight.shape[0], eps=_epsilon(child), device=weight.device, dtype=weight.dtype)
                exact.weight = weight
                setattr(parent, name, exact)


def _epsilon(norm: nn.Module) -> float:
    for name in ("variance_epsilon", "eps"):
        if hasattr(norm, name):
            return float(getattr(norm, name))
    raise ValueError(f"{type(norm).__name__} has no epsilon under a known name")


def numbered_key(number: int) -> EmbeddingKey:
    """A key for a store's tests, another one for every number."""
    return EmbeddingKey(
        content_digest=f"{number:064x}",
        frame_indices=(0, 4),
        timestamps=(0, 160_000),
        height=112,
        width=140,
        processor_digest="p",
        encoder_fingerprint="e",
        dtype="float32",
        family="f",
    )


class NoiseVideo:
    """A `Video` whose frames are seeded noise, made when they are read.

    Args:
        seed: Seed of the frames; also what the content digest is made of.
        frame_count: Number of frames.
        height: Rows of a frame.
        width: Columns of a frame.
        frames_per_second: Sets the timestamps.
    """

    def __init__(
        self,
        *,
        seed: int = 0,
        frame_count: int = 24,
        height: int = 84,
        width: int = 112,
        frames_per_second: float = 4.0,
    ) -> None:
        self.frame_count, self.height, self.width = frame_count, height, width
        self.timestamps: npt.NDArray[np.float64] = np.arange(frame_count) / frames_per_second
        self.content_digest = hashlib.sha256(f"{seed} {frame_count} {height} {width}".encode()).hexdigest()
        self.num_read = 0
        self._seed = seed

    def read(self, indices: Sequence[int]) -> npt.NDArray[np.uint8]:
        """Return noise that depends on seed and index alone, [F, H, W, 3], and count the frames in `num_read`."""
        self.num_read += len(indices)
        shape = (self.height, self.width, 3)
        frames = [np.random.default_rng((self._seed, index)).integers(0, 256, shape, np.uint8) for index in indices]
        return np.stack(frames)
