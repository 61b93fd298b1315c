"""How time and memory are measured: stages that may lie inside each other, and the peak of a stretch of work.

Only differences count: memory is what a stretch held beyond what the process held before it, so that weights and
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
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import torch

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
MATRIX_SIZE = {"cpu": 1024, "cuda": 8192}
NUM_TRIALS = 5


class StageClock:
    """Seconds of named stages; a stage within another stops the outer one's clock.

    Args:
        stages: All names, in order.
        device: Waited for whenever a clock starts or stops.
    """

    def __init__(self, stages: Sequence[str], device: torch.device) -> None:
        self.seconds = dict.fromkeys(stages, 0.0)
        self._device = device
        self._running: list[str] = []
        self._since = 0.0

    @contextmanager
    def __call__(self, stage: str) -> Generator[None]:
        """Count the block's time for `stage`."""
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
    """Most bytes held beyond those held at the start; None where the system doesn't tell (CPUs without Linux)."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        gc.collect()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self._before: int | None = torch.cuda.memory_allocated(device)
            return
        # What was freed but not returned would count as held before.
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
        try:
            CLEAR.write_text("5")  # the peak starts anew
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
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def time_interleaved(
    actions: Mapping[str, Callable[[], object]], *, repeats: int, device: torch.device
) -> dict[str, list[float]]:
    """Seconds of each action in each of `repeats` rounds; a first round, which warms up, doesn't count."""
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
    """Floating-point operations per second in the product of two large square matrices."""
    size = MATRIX_SIZE.get(device.type, MATRIX_SIZE["cuda"])
    left, right = torch.randn((2, size, size), device=device).to(dtype).unbind(0)
    trials = time_interleaved({"product": lambda: left @ right}, repeats=NUM_TRIALS, device=device)
    return 2 * size**3 / median(trials["product"])


def describe_machine(device: torch.device) -> dict[str, Any]:
    """What figures have to be read with: hardware and versions."""
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
    """The commit of the checkout this file lies in, if it does."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
