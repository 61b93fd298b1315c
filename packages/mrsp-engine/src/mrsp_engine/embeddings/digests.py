"""Digests of files, remembered, so that a film of many gigabytes is read through once and not in every run.

What is remembered is one small JSON file per path in a folder, replaced as a whole, so that any number of processes may
share it and a damaged one costs nothing but the reading. A digest counts as long as the file's size, inode and times of
change stay. A file changed within the last moments is not remembered: it could change again within one tick of its
clock.

A digest decides which embedding is taken for a film, so it is believed only if this user wrote it down on this machine:
each note is sealed (`longrl_files.user_seal`) and names both. A store that was copied, or that others write to, can't
say what a film here is; whatever isn't believed is read again.
"""

import contextlib
import hashlib
import json
import os
import platform
import re
import secrets
import time
from io import BufferedReader
from pathlib import Path
from typing import Any, cast

from longrl_files.own_folders import OwnFolder
from longrl_files.regular_files import open_regular
from longrl_files.user_seal import is_sealed, seal
from mrsp_engine.errors import EngineError

__all__ = ["FileDigests"]

UNSETTLED_SECONDS = 2.0
MOST_NOTE_BYTES = 1 << 16
_DIGEST = re.compile(r"[0-9a-f]{64}")
_MACHINE = Path("/etc/machine-id")


class _UnusableNoteError(Exception):
    """A note can't be read or written, for which the file itself is read."""


class FileDigests:
    """SHA-256 of files' bytes.

    Args:
        folder: Where digests are remembered; made when the first one is. A folder that can't be written to is no error.
        is_read_only: Remember nothing more.

    Attributes:
        num_read: Files read through by this object.
    """

    def __init__(self, folder: Path, *, is_read_only: bool = False) -> None:
        self.folder = folder
        self.num_read = 0
        self._is_read_only = is_read_only
        self._files = OwnFolder(folder.parent, error=_UnusableNoteError)

    def digest(self, path: Path) -> str:
        """SHA-256 of a file's bytes, in hexadecimal.

        Raises:
            EngineError: The file can't be read.
        """
        path = path.absolute()
        note = f"{self.folder.name}/{hashlib.sha256(os.fsencode(path)).hexdigest()}.json"
        with open_regular(path, error=EngineError) as file:
            try:
                state = _state(path, os.fstat(file.fileno()))
                known = self._recall(note, state)
                if known is not None:
                    return known
                found = hashlib.file_digest(cast(BufferedReader, file), "sha256").hexdigest()
                self.num_read += 1
                is_settled = max(state["mtime_ns"], state["ctime_ns"]) < time.time_ns() - UNSETTLED_SECONDS * 1e9
                if is_settled and _state(path, os.fstat(file.fileno())) == state and not self._is_read_only:
                    self._remember(note, {**state, "sha256": found})
            except OSError as error:
                raise EngineError(f"{path}: can't be read ({error.strerror})") from error
        return found

    def _recall(self, note: str, state: dict[str, Any]) -> str | None:
        try:
            known = self._files.read_json(note, max_bytes=MOST_NOTE_BYTES)
        except _UnusableNoteError:
            return None
        if not isinstance(known, dict):
            return None
        values = cast(dict[str, Any], known)
        digest, found = values.pop("sha256", None), values.pop("seal", None)
        is_digest = isinstance(digest, str) and _DIGEST.fullmatch(digest) is not None
        if not is_digest or values != state or not is_sealed(_sealed_bytes(state, digest), found):
            return None
        return digest

    def _remember(self, note: str, content: dict[str, Any]) -> None:
        mark = seal(_sealed_bytes(content, content["sha256"]))
        if mark is None:
            return
        temporary = f"{self.folder.name}/.writing-{secrets.token_hex(8)}"
        with contextlib.suppress(OSError, _UnusableNoteError):
            self._files.make_folder(self.folder.name)
            try:
                with self._files.create(temporary) as file:
                    file.write(json.dumps({**content, "seal": mark}).encode())
                self._files.replace(temporary, note)
            finally:
                self._files.remove(temporary)


def _state(path: Path, status: os.stat_result) -> dict[str, Any]:
    """Which state of which file this is, and who sees it where."""
    return {
        "path": os.fsencode(path).decode(errors="backslashreplace"),
        "user": os.getuid(),
        "machine": _machine(),
        "device": status.st_dev,
        "size": status.st_size,
        "inode": status.st_ino,
        "mtime_ns": status.st_mtime_ns,
        "ctime_ns": status.st_ctime_ns,
    }


def _sealed_bytes(state: dict[str, Any], digest: str) -> bytes:
    return json.dumps({**state, "sha256": digest}, sort_keys=True).encode()


def _machine() -> str:
    """What tells this machine from others that see the same folders."""
    try:
        identity = _MACHINE.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        identity = ""
    return f"{identity} {platform.node()}".strip()
