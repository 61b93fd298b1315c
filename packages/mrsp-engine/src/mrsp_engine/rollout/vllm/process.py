"""Sharing one process with vLLM, alone or as one rank of a process group.

vLLM assumes that it owns its process: it changes environment variables (such as `LD_PRELOAD`, which every child would
inherit), replaces `torch.set_num_threads`, logs a lot and reports usage. Training runs in the same process here, so
each of these is confined to the times when vLLM runs. The module does not depend on what is sampled.
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

# Set while vLLM is imported and started. Later, only the first two are read in this process.
_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # in-process: starts in seconds and receives weights without copies
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # binding would affect the trainer's threads too
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
    """The position of this process among those that sample.

    The ranks of a process group form replicas of `tensor_parallel_size` neighbours, which share one copy of the model
    and must receive the same prompts. Replicas are independent, except that all of them must call `generate` together.

    Attributes:
        tensor_parallel_size: Ranks per replica.
        num_replicas: Number of replicas.
        rank: Rank of this process in the group.
        is_grouped: Whether there is a process group.
    """

    tensor_parallel_size: int
    num_replicas: int = 1
    rank: int = 0
    is_grouped: bool = False

    @classmethod
    def find(cls, tensor_parallel_size: int) -> "Placement":
        """The position in the default process group; a single process if there is none.

        Raises:
            EngineUsageError: The group's ranks can't be divided like this.
        """
        is_grouped = dist.is_available() and dist.is_initialized()
        num_ranks = dist.get_world_size() if is_grouped else 1
        if tensor_parallel_size < 1 or num_ranks % tensor_parallel_size:
            raise EngineUsageError(
                f"tensor_parallel_size={tensor_parallel_size}: expected a divisor of the number of ranks, "
                f"{num_ranks}; change it or start that many processes with torchrun"
            )
        return cls(
            tensor_parallel_size=tensor_parallel_size,
            num_replicas=num_ranks // tensor_parallel_size,
            rank=dist.get_rank() if is_grouped else 0,
            is_grouped=is_grouped,
        )

    @property
    def replica(self) -> int:
        """The replica of this process."""
        return self.rank // self.tensor_parallel_size

    def engine_options(self) -> dict[str, Any]:
        """Engine options for vLLM."""
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
        """The environment variables that a launcher would set; vLLM reads its rank from them."""
        if not self.is_grouped:
            return {}
        local_rank = torch.cuda.current_device() if torch.cuda.is_available() else self.rank
        return {"RANK": str(self.rank), "LOCAL_RANK": os.environ.get("LOCAL_RANK", str(local_rank))}


@contextlib.contextmanager
def confined_import(placement: Placement | None = None) -> Generator[None]:
    """Import and start vLLM within this context: quiet, offline, and with the process's state restored afterwards.

    Anything written to standard error meanwhile is discarded, unless the user sets `VLLM_LOGGING_LEVEL`.
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
    """VLLM's worker on CPUs, whose ranks communicate through the process group.

    By default vLLM uses shared memory under a name that is the same for all launched jobs of a machine, is never freed,
    and waits forever for a rank that died. Ranks with different names don't use shared memory.
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
            own_name = f"{distributed_init_method}:rank-{rank}"  # vLLM uses the part after the last colon as the name
            super().__init__(vllm_config, local_rank, rank, own_name, is_driver_worker)

    return GroupedCpuWorker


def __getattr__(name: str) -> Any:
    if name == CPU_WORKER_NAME:
        return _create_cpu_worker()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def own_random_numbers() -> contextlib.AbstractContextManager[None]:
    """Within this context random numbers may be drawn and seeded; afterwards the caller's random state is restored."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    return torch.random.fork_rng(devices=devices)


@contextlib.contextmanager
def sampling_threads(num_threads: int, *, is_eager: bool) -> Generator[None]:
    """Run vLLM in this context with this many threads, compiling or not, and keep the caller's random state."""
    previous = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        # vLLM compiles its sampler on first use even in eager mode: half a minute that pays off only on large machines.
        with own_random_numbers(), torch.compiler.set_stance("force_eager" if is_eager else "default"):
            yield
    finally:
        torch.set_num_threads(previous)


@contextlib.contextmanager
def _dropped_standard_error() -> Generator[None]:
    # Some of the output comes from C++ code, so the file descriptor itself is redirected.
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
