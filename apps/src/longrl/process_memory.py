"""The memory that a process and its children use, and giving back what they don't.

Both are needed by a pipeline, whose stages do different work one after another in one process.
"""

import ctypes
import gc
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_PROCESSES = Path("/proc")


def memory_bytes() -> int:
    """Memory of this process and its children now, or the peak of this process alone if that is more.

    `getrusage` is of no use here: a process begins with the peak of the one that started it.
    """
    own_peak = _bytes_of(os.getpid(), "VmHWM")
    return max(own_peak, sum(_bytes_of(process, "VmRSS") for process in _family(os.getpid())))


def return_memory() -> None:
    """Give memory that is not in use back to the system, where its C library can."""
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def _family(process: int) -> Iterator[int]:
    yield process
    for thread in _PROCESSES.glob(f"{process}/task/*"):
        with suppress(OSError):  # ended meanwhile
            for child in (thread / "children").read_text().split():
                yield from _family(int(child))


def _bytes_of(process: int, name: str) -> int:
    with suppress(OSError):
        for line in (_PROCESSES / str(process) / "status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return 1024 * int(line.split()[1])
    return 0
