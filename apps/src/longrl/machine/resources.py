"""Memory and disk of this machine, and whether a folder can be written: not by its flags, but by writing."""

import os
import shutil
from contextlib import suppress
from pathlib import Path

from longrl_files.regular_files import reason_of
from longrl_trainer.durable import LOOK_PREFIX

__all__ = ["existing_folder", "find_unwritable", "free_disk_bytes", "free_memory_bytes"]

PROBE_BYTES = 16 * 2**20
"""More than the buffers behind which a network's file system may hide that it is full."""


def free_memory_bytes() -> int:
    """Memory that can be had without swapping: of the machine, or what this job's control group leaves."""
    free = _machine_free_bytes()
    for folder in _memory_groups():
        with suppress(OSError, ValueError):  # "max" for none
            limit = int((folder / "memory.max").read_text())
            used = int((folder / "memory.current").read_text())
            files = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            free = min(free, max(0, limit - used + int(files.get("inactive_file", 0))))
    return free


def _machine_free_bytes() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _memory_groups() -> list[Path]:
    """The folders of this process's control group (version 2) and those above it."""
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            if line.startswith("0::"):
                inner = Path("/sys/fs/cgroup") / line.removeprefix("0::").strip().lstrip("/")
                return [folder for folder in (inner, *inner.parents) if folder.is_relative_to("/sys/fs/cgroup")]
    return []


def free_disk_bytes(folder: Path) -> int:
    """What the file system of a folder, which needn't be there yet, has left for this user."""
    return shutil.disk_usage(existing_folder(folder)).free


def existing_folder(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    return next(one for one in (folder.absolute(), *folder.absolute().parents) if one.is_dir())


def find_unwritable(folder: Path) -> str | None:
    """Write and remove a file in a folder, or in the nearest one above it; why that fails, if it does."""
    place = existing_folder(folder)
    probe = place / f"{LOOK_PREFIX}probe-{os.uname().nodename}-{os.getpid()}"
    try:
        descriptor = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        try:
            block = bytes(2**20)
            for _ in range(PROBE_BYTES // len(block)):
                written = os.write(descriptor, block)
                if written < len(block):  # the system says why with the next one
                    os.write(descriptor, block[written:])
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        return f"{place}: can't be written ({reason_of(error)})"
    finally:
        with suppress(OSError):
            probe.unlink()
    return None
