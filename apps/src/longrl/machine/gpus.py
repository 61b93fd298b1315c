"""The GPUs that a process of this machine would see, as the driver's own program tells, without starting CUDA.

torch would need a second or more, and memory on the device; `nvidia-smi` comes with every driver.
"""

import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

from longrl_files.messages import visible

__all__ = ["Gpu", "GpuReport", "find_gpus"]

PROGRAM = "nvidia-smi"
QUERY = ("index", "uuid", "name", "memory.total", "memory.free", "driver_version")
PATIENCE_SECONDS = 60.0
MEBIBYTE = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One device.

    Attributes:
        index: Its number on the machine.
        name: What its driver calls it.
        memory_bytes: Size of its memory.
        free_bytes: What no process uses.
        driver: Version of the driver.
    """

    index: int
    name: str
    memory_bytes: int
    free_bytes: int
    driver: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuReport:
    """What was found.

    Attributes:
        gpus: The devices, in the order in which CUDA numbers them.
        problem: Why they couldn't be looked at; None if they could.
    """

    gpus: tuple[Gpu, ...] = ()
    problem: str | None = None


def find_gpus(environment: Mapping[str, str] = os.environ) -> GpuReport:
    """Look at the GPUs that `CUDA_VISIBLE_DEVICES` leaves, all if it isn't set."""
    program = shutil.which(PROGRAM, path=environment.get("PATH"))
    if program is None:
        return GpuReport(problem=f"{PROGRAM} isn't there, so there is no driver for GPUs")
    command = [program, f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return GpuReport(problem=f"{PROGRAM} doesn't answer ({visible(str(error))})")
    if done.returncode != 0:
        return GpuReport(problem=f"{PROGRAM} fails ({visible((done.stdout + done.stderr).strip())})")
    try:
        found = [_read(line) for line in done.stdout.splitlines() if line.strip()]
    except ValueError:
        return GpuReport(problem=f"{PROGRAM} says something else than expected ({visible(done.stdout)})")
    return _visible_ones(found, environment.get("CUDA_VISIBLE_DEVICES"))


def _read(line: str) -> tuple[str, Gpu]:
    index, uuid, name, total, free, driver = (word.strip() for word in line.split(","))
    return uuid, Gpu(
        index=int(index),
        name=name,
        memory_bytes=int(total) * MEBIBYTE,
        free_bytes=int(free) * MEBIBYTE,
        driver=driver,
    )


def _visible_ones(found: list[tuple[str, Gpu]], chosen: str | None) -> GpuReport:
    """The devices that the variable names, in its order; as in CUDA, the first unknown name ends the list."""
    if chosen is None:
        return GpuReport(gpus=tuple(gpu for _, gpu in found))
    gpus: list[Gpu] = []
    for word in (part.strip() for part in chosen.split(",")):
        if word.startswith("MIG-"):
            return GpuReport(problem=f"CUDA_VISIBLE_DEVICES={visible(chosen, 60)}: parts of GPUs can't be looked at")
        # Numbers, or UUIDs of which the beginning is enough.
        known = [gpu for uuid, gpu in found if word == str(gpu.index) or (word and uuid.startswith(word))]
        if not known:
            break
        gpus.append(known[0])
    return GpuReport(gpus=tuple(gpus))
