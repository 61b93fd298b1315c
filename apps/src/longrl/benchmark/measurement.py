"""Measuring time and memory: stages, which may be nested, and the peak memory of a block.

Only differences count: memory is what a block uses beyond what the process used before it, so that weights and
libraries, which are the same for everything compared, don't hide it.
"""

import ctypes
import gc
import os
import platform
import re
import subprocess
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from mrsp_engine.attention.backends.base import choose_backend
from mrsp_engine.attention.exchange import NoExchange
from mrsp_engine.attention.heads import AttentionHeads
from mrsp_engine.attention.packed import packed_attention
from mrsp_engine.attention.split import BACKWARD_PER_FORWARD
from mrsp_engine.layout import PackedLayout

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
MATRIX_SIZE = {"cpu": 1024, "cuda": 8192}
NUM_TRIALS = 5


class StageClock:
    """Seconds of named stages; a nested stage stops the outer one's clock.

    Args:
        stages: All names, in order.
        device: Device to synchronise with whenever a clock starts or stops.
    """

    def __init__(self, stages: Sequence[str], device: torch.device) -> None:
        self.seconds = dict.fromkeys(stages, 0.0)
        self._device = device
        self._running: list[str] = []
        self._since = 0.0

    @contextmanager
    def __call__(self, stage: str) -> Generator[None]:
        """Add the block's time to `stage`."""
        self._charge()
        self._running.append(stage)
        yield
        self._charge()
        self._running.pop()

    def _charge(self) -> None:
        finish(self._device)
        now = time.perf_counter()
        if self._running:
            self.seconds[self._running[-1]] += now - self._since
        self._since = now


class PeakMemory:
    """Peak bytes beyond those in use at the start; None where the system doesn't report them (CPUs without Linux)."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        gc.collect()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self._before: int | None = torch.cuda.memory_allocated(device)
            return
        # Memory that was freed but not returned would count as used before.
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
        try:
            CLEAR.write_text("5")  # reset the peak
            self._before = _status_bytes("VmRSS")
        except OSError:
            self._before = None

    def read(self) -> int | None:
        """The peak so far."""
        if self._before is None:
            return None
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device) - self._before
        return max(0, _status_bytes("VmHWM") - self._before)


def finish(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def time_interleaved(
    actions: Mapping[str, Callable[[], object]], *, repeats: int, device: torch.device
) -> dict[str, list[float]]:
    """Seconds of each action in each of `repeats` rounds, after a warm-up round."""
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for turn in range(repeats + 1):
        for name, action in actions.items():
            finish(device)
            started = time.perf_counter()
            action()
            finish(device)
            if turn:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def measure_matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Highest floating-point operations per second of several products of two large square matrices."""
    size = MATRIX_SIZE.get(device.type, MATRIX_SIZE["cuda"])
    left, right = torch.randn((2, size, size), device=device).to(dtype).unbind(0)
    trials = time_interleaved({"product": lambda: left @ right}, repeats=NUM_TRIALS, device=device)
    return 2 * size**3 / min(trials["product"])


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionRates:
    """The speed of attention over a row.

    Attributes:
        forward_seconds: Median seconds of one forward pass.
        backward_seconds: Median seconds of one backward pass.
        forward_rate: Operations per second: 4 per channel, query head and visible pair.
        backward_rate: The same for the backward pass, which has 2.5 times the operations.
    """

    forward_seconds: float
    backward_seconds: float
    forward_rate: float
    backward_rate: float

    @classmethod
    def measure(
        cls,
        forward: Callable[[], Tensor],
        inputs: Sequence[Tensor],
        heads: AttentionHeads,
        *,
        num_pairs: int,
        repeats: int,
    ) -> "AttentionRates":
        """Time `forward`, which computes the given number of pairs, and its backward pass."""
        output = forward()
        gradient = torch.randn_like(output)
        seconds = time_interleaved(
            {
                "forward": forward,
                "backward": lambda: torch.autograd.grad(output, inputs, gradient, retain_graph=True),
            },
            repeats=repeats,
            device=output.device,
        )
        forward_seconds, backward_seconds = median(seconds["forward"]), median(seconds["backward"])
        operations = 4.0 * num_pairs * heads.query * heads.channels
        return cls(
            forward_seconds=forward_seconds,
            backward_seconds=backward_seconds,
            forward_rate=operations / forward_seconds,
            backward_rate=BACKWARD_PER_FORWARD * operations / backward_seconds,
        )


def measure_packed_attention(
    layout: PackedLayout, heads: AttentionHeads, *, device: torch.device, dtype: torch.dtype, repeats: int
) -> AttentionRates:
    """Time the engine's attention over one row on one rank."""
    query, key, value = random_heads(layout.total, heads, device, dtype)
    exchange, backend = NoExchange(layout.attention_calls()), choose_backend(query)

    def forward() -> Tensor:
        return packed_attention(query, key, value, exchange, scale=heads.channels**-0.5, backend=backend)

    return AttentionRates.measure(
        forward, (query, key, value), heads, num_pairs=layout.num_visible_pairs, repeats=repeats
    )


def random_heads(
    num_tokens: int, heads: AttentionHeads, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries [H, S, C], keys and values [K, S, C], with gradients; laid out by tokens like projections' output."""
    query, key, value = (
        torch.randn(num_tokens, count, heads.channels, device=device).to(dtype).transpose(0, 1).requires_grad_()
        for count in (heads.query, heads.key, heads.key)
    )
    return query, key, value


def describe_machine(device: torch.device) -> dict[str, Any]:
    """The context of the figures: hardware and versions."""
    packages = ("torch", "transformers", "mrsp-engine")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor_name()
    return {
        "device": name,
        "threads": torch.get_num_threads(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "python": platform.python_version(),
        "versions": {package: version(package) for package in packages},
        "commit": _commit(),
    }


def _status_bytes(field: str) -> int:
    found = re.search(rf"{field}:\s+(\d+) kB", STATUS.read_text())
    if found is None:
        raise OSError(f"{STATUS}: no {field}")
    return int(found[1]) * 1024


def _processor_name() -> str:
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def _commit() -> str | None:
    """The commit of the checkout that contains this file, if any."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
