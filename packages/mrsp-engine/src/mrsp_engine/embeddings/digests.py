"""Cached digests of files, so that a video of many gigabytes is read once and not in every run.

The cache is a folder with one small JSON file per path, replaced atomically, so that any number of processes may share
it and a damaged one only causes the file to be read again. A digest is valid while the file's size, inode and
modification times are unchanged. A file that changed very recently is not cached: it could change again within one tick
of the file system's clock.
"""

import contextlib
import hashlib
import json
import os
import re
import tempfile
import time
from pathlib import Path

from mrsp_engine.errors import EngineError

__all__ = ["FileDigests"]

UNSETTLED_SECONDS = 2.0
_DIGEST = re.compile(r"[0-9a-f]{64}")


class FileDigests:
    """SHA-256 of files' bytes.

    Args:
        folder: Where digests are cached; created with the first one. A folder that can't be written to is not an error.

    Attributes:
        num_read: Number of files read by this object.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.num_read = 0

    def digest(self, path: Path) -> str:
        """SHA-256 of a file's bytes, in hexadecimal.

        Raises:
            EngineError: The file can't be read.
        """
        path = path.absolute()
        note = self.folder / f"{hashlib.sha256(os.fsencode(path)).hexdigest()}.json"
        try:
            with path.open("rb") as file:
                state = _state(os.fstat(file.fileno()))
                known = _recall(note, state)
                if known is not None:
                    return known
                found = hashlib.file_digest(file, "sha256").hexdigest()
                self.num_read += 1
                is_settled = max(state["mtime_ns"], state["ctime_ns"]) < time.time_ns() - UNSETTLED_SECONDS * 1e9
                if is_settled and _state(os.fstat(file.fileno())) == state:
                    _remember(note, {"path": os.fsdecode(path), "sha256": found, **state})
        except OSError as error:
            raise EngineError(f"{path}: can't be read ({error.strerror})") from error
        return found


def _state(status: os.stat_result) -> dict[str, int]:
    return {
        "size": status.st_size,
        "inode": status.st_ino,
        "mtime_ns": status.st_mtime_ns,
        "ctime_ns": status.st_ctime_ns,
    }


def _recall(note: Path, state: dict[str, int]) -> str | None:
    try:
        known = json.loads(note.read_text(encoding="utf-8"))
        digest = str(known["sha256"])
        is_current = all(known[name] == value for name, value in state.items())
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return digest if is_current and _DIGEST.fullmatch(digest) else None


def _remember(note: Path, content: dict[str, str | int]) -> None:
    with contextlib.suppress(OSError):
        note.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=".writing-", dir=note.parent)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                json.dump(content, file)
            Path(name).replace(note)
        finally:
            Path(name).unlink(missing_ok=True)
