"""One owner at a time for a folder that a command fills: two at work in it would lose each other's files.

The owner holds a lock on the file `.owner`, in which it says who it is. The kernel drops the lock when the process
ends, however it ends, so a folder is never left locked; the file goes with an orderly end and is overwritten after
any other. Between machines the lock holds as far as their common file system carries locks. Knows nothing of what is
in the folder.
"""

import errno
import fcntl
import json
import logging
import os
import socket
from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic, sleep
from typing import cast

from longrl_files.folders import ForeignFolder
from longrl_files.json_text import parse_json
from longrl_files.messages import visible
from longvideo_reason_data.errors import DataError, UsageError

OWNER_NAME = ".owner"
# What a file system says that carries no locks.
_WITHOUT_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP})
# An owner that has just taken the lock writes its name at once.
_PATIENCE_SECONDS = 1.0

_logger = logging.getLogger(__name__)
_held: set[int] = set()


@contextmanager
def own_folder(folder: Path) -> Generator[None]:
    """Own a folder while the block runs; it is made when it doesn't exist.

    Raises:
        UsageError: Another process, or another thread of this one, owns it.
        DataError: The folder can't be written, or holds a link to elsewhere.
    """
    with _own(folder, folder / OWNER_NAME):
        ForeignFolder(folder, error=DataError).require_no_links()
        yield


@contextmanager
def own_file(path: Path) -> Generator[None]:
    """Own the place of one file while the block runs; see `own_folder`."""
    with _own(path, path.with_name(f".{path.name}{OWNER_NAME}")):
        yield


@contextmanager
def _own(place: Path, lock: Path) -> Generator[None]:
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _take(place, lock)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, _describe_self(), 0)
    except OSError as error:
        raise DataError(f"{place}: can't be written ({error.strerror}); choose another output folder") from error
    _held.add(descriptor)
    try:
        yield
    finally:
        # Still locked: whoever opens the file from here on finds it gone, and makes another.
        lock.unlink(missing_ok=True)
        _held.discard(descriptor)
        os.close(descriptor)


def _take(place: Path, lock: Path) -> int:
    """Open the lock's file and lock it."""
    while True:
        with ForeignFolder(lock.parent, error=DataError).open_to_append(lock.name) as file:
            descriptor = os.dup(file.fileno())
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = _read_owner(descriptor)
            os.close(descriptor)
            raise UsageError(f"{place} is in use by {owner}; wait for it to end, or choose another output") from None
        except OSError as error:
            if error.errno not in _WITHOUT_LOCKS:
                os.close(descriptor)
                raise
            _logger.warning("%s: its file system has no locks; start nothing else in it", place)
            return descriptor
        if _is_at(descriptor, lock):
            return descriptor
        os.close(descriptor)  # its last owner removed it after it was opened


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _describe_self() -> bytes:
    since = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return json.dumps({"process": os.getpid(), "host": socket.gethostname(), "since": since}).encode() + b"\n"


def _read_owner(descriptor: int) -> str:
    """Who holds the lock, in words."""
    deadline = monotonic() + _PATIENCE_SECONDS
    while not (content := os.pread(descriptor, 4096, 0)) and monotonic() < deadline:
        sleep(0.01)
    try:
        owner = cast(dict[str, object], parse_json(content))
        return visible(f"process {owner['process']} on {owner['host']} since {owner['since']}")
    except (ValueError, KeyError, TypeError):
        return "another process"


def _leave_to_parent() -> None:
    """A forked process owns nothing: kept open in it, the file would stay locked after its parent was killed."""
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=_leave_to_parent)
