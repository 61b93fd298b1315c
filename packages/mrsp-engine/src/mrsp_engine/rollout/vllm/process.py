"""Living with vLLM in one process, alone or as one of the ranks of a process group.

vLLM is made to own its process: it changes environment variables (`LD_PRELOAD` among them, which every child would
inherit), replaces `torch.set_num_threads`, logs freely and reports usage. Training goes on in the same process here, so
each of these is confined to the moments when vLLM runs. The module doesn't know what is sampled.
"""

import contextlib
import os
import sys
import tempfile
import warnings
from collections.abc import Generator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.distributed as dist

from mrsp_engine.errors import EngineUsageError

__all__ = ["Placement", "confined_import", "own_random_numbers", "sampling_threads"]

# Set while vLLM is imported and started. Later reads of these, in the process itself, are of the first two only.
_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # in process: starts in seconds and takes weights without copies
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # binding would hold for the trainer's threads too
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
}
_LOG_LEVEL = "VLLM_LOGGING_LEVEL"
CPU_WORKER_NAME = "GroupedCpuWorker"


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where this process stands among those that sample.

    The ranks of a process group form replicas of `tensor_parallel_size` neighbours, which hold one copy of the model
    together and must be given the same prompts. Replicas are independent but for one thing: all of them must call
    `generate` together.

    Attributes:
        tensor_parallel_size: Ranks per replica.
        num_replicas: Replicas.
        rank: This process in the group.
        is_grouped: Whether there is a process group at all.
    """

    tensor_parallel_size: int
    num_replicas: int = 1
    rank: int = 0
    is_grouped: bool = False

    @classmethod
    def find(cls, tensor_parallel_size: int) -> "Placement":
        """The place in the default process group, or alone if there is none.

        Raises:
            EngineUsageError: If the group's ranks can't be divided so.
        """
        is_grouped = dist.is_available() and dist.is_initialized()
        num_ranks = dist.get_world_size() if is_grouped else 1
        if tensor_parallel_size < 1 or num_ranks % tensor_parallel_size:
            raise EngineUsageError(
                f"tensor_parallel_size={tensor_parallel_size}: expected a divisor of the number of ranks, "
                f"{num_ranks}; change it or start as many processes with torchrun"
            )
        return cls(
            tensor_parallel_size=tensor_parallel_size,
            num_replicas=num_ranks // tensor_parallel_size,
            rank=dist.get_rank() if is_grouped else 0,
            is_grouped=is_grouped,
        )

    @property
    def replica(self) -> int:
        """Which replica this process belongs to."""
        return self.rank // self.tensor_parallel_size

    def engine_options(self) -> dict[str, Any]:
        """What vLLM has to be told."""
        if not self.is_grouped:
            return {}
        options: dict[str, Any] = {
            "distributed_executor_backend": "external_launcher",
            "tensor_parallel_size": self.tensor_parallel_size,
            "data_parallel_size": self.num_replicas,
        }
        if not torch.cuda.is_available():
            options["worker_cls"] = f"{__name__}.{CPU_WORKER_NAME}"
        return options

    def environment(self) -> dict[str, str]:
        """What a launcher would have set; vLLM reads its rank from there."""
        if not self.is_grouped:
            return {}
        local_rank = torch.cuda.current_device() if torch.cuda.is_available() else self.rank
        return {"RANK": str(self.rank), "LOCAL_RANK": os.environ.get("LOCAL_RANK", str(local_rank))}


@contextlib.contextmanager
def confined_import(placement: Placement | None = None) -> Generator[None]:
    """Import and start vLLM inside: quiet, offline, and with the process's state as before afterwards.

    What is written to standard error meanwhile is dropped, unless `VLLM_LOGGING_LEVEL` is set by the user.
    """
    environment = dict(os.environ)
    set_num_threads = torch.set_num_threads
    os.environ.update(_ENVIRONMENT | (placement.environment() if placement else {}))
    is_quiet = _LOG_LEVEL not in environment
    os.environ.setdefault(_LOG_LEVEL, "ERROR")
    try:
        with _dropped_standard_error() if is_quiet else contextlib.nullcontext():
            yield
    finally:
        torch.set_num_threads = set_num_threads
        os.environ.clear()
        os.environ.update(environment)


@cache
def _create_cpu_worker() -> type:
    """VLLM's worker on CPUs, whose ranks talk through the process group.

    By itself it shares memory under a name that is the same for all launched jobs of a machine, is never given back,
    and waits forever for a rank that died. Ranks that disagree on the name don't share.
    """
    from vllm.v1.worker.cpu_worker import CPUWorker

    class GroupedCpuWorker(CPUWorker):
        """See above."""

        def __init__(
            self,
            vllm_config: Any,
            local_rank: int,
            rank: int,
            distributed_init_method: str,
            is_driver_worker: bool = False,
        ) -> None:
            own_name = f"{distributed_init_method}:rank-{rank}"  # vLLM takes the name from what follows the last colon
            super().__init__(vllm_config, local_rank, rank, own_name, is_driver_worker)

    return GroupedCpuWorker


def __getattr__(name: str) -> Any:
    if name == CPU_WORKER_NAME:
        return _create_cpu_worker()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def own_random_numbers() -> contextlib.AbstractContextManager[None]:
    """Inside, random numbers may be drawn and seeded; afterwards the caller's go on as if nothing had been."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    return torch.random.fork_rng(devices=devices)


@contextlib.contextmanager
def sampling_threads(num_threads: int, *, is_eager: bool) -> Generator[None]:
    """Run vLLM inside with this many threads, without touching the caller's random numbers, compiling or not."""
    previous = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        # vLLM compiles its sampler on first use even in eager mode: half a minute that pays only on large machines.
        with own_random_numbers(), torch.compiler.set_stance("force_eager" if is_eager else "default"):
            yield
    finally:
        torch.set_num_threads(previous)


@contextlib.contextmanager
def _dropped_standard_error() -> Generator[None]:
    # Part of the noise is written by C++ code, so the file descriptor itself is turned away.
    sys.stderr.flush()
    saved = os.dup(2)
    try:
        with tempfile.TemporaryFile() as sink, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            os.dup2(sink.fileno(), 2)
            yield
    finally:
        sys.stderr.flush()
        os.dup2(saved, 2)
        os.close(saved)
