"""Files that a user names: regular files, or one line.

A path on the command line may be a link, and is followed. But a FIFO there would wait for a writer for ever, and a
device would never end; so what is opened is looked at before a byte is read.
"""

import os
import stat
from pathlib import Path
from typing import BinaryIO, Literal

from longrl_files.messages import visible

# Opening a FIFO doesn't wait for its writer; for a regular file the flag means nothing.
READ_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
APPEND_FLAGS = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
MAX_TEXT_BYTES = 256 * 2**20

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFLNK: "a link",
}


def open_regular(path: Path, *, error: type[Exception]) -> BinaryIO:
    """Open a file to read its bytes.

    Args:
        path: What the user named; a link is followed.
        error: The exception to raise, of the caller's own kind.

    Raises:
        error: There is none, it can't be read, or it is no regular file.
    """
    try:
        descriptor = os.open(path, READ_FLAGS)
    except (OSError, ValueError) as failure:
        raise error(f"{show(path)}: can't be read ({reason_of(failure)})") from failure
    return adopt(descriptor, path, error=error)


def read_bounded(path: Path, *, error: type[Exception], max_bytes: int = MAX_TEXT_BYTES) -> bytes:
    """Read a whole file that the user named.

    Raises:
        error: It can't be read, is no regular file, or is longer than `max_bytes`.
    """
    with open_regular(path, error=error) as file:
        return read_all(file, path, error=error, max_bytes=max_bytes)


def adopt(descriptor: int, path: Path, *, error: type[Exception], mode: Literal["rb", "a+b"] = "rb") -> BinaryIO:
    """Make a file of an open descriptor if it is a regular file's; else it is closed."""
    kind = stat.S_IFMT(os.fstat(descriptor).st_mode)
    if kind != stat.S_IFREG:
        os.close(descriptor)
        raise error(f"{show(path)}: is {_KINDS.get(kind, 'no file')}, expected a regular file")
    return os.fdopen(descriptor, mode)


def read_all(file: BinaryIO, path: Path, *, error: type[Exception], max_bytes: int) -> bytes:
    """Read an open file to its end; see `read_bounded`."""
    try:
        content = file.read(max_bytes + 1)
    except OSError as failure:
        raise error(f"{show(path)}: can't be read ({reason_of(failure)})") from failure
    if len(content) > max_bytes:
        raise error(f"{show(path)}: has more than {max_bytes:,} bytes, the most that is read of such a file")
    return content


def show(path: Path) -> str:
    """A path for a message."""
    return visible(os.fsencode(path).decode(errors="replace"))


def reason_of(failure: Exception) -> str:
    """Why the system refused, in its own words."""
    return (isinstance(failure, OSError) and failure.strerror) or visible(str(failure))
