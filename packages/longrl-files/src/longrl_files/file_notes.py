"""Notes about files: what was found out about a large file once, so that it isn't found out again in every run.

A folder holds one small JSON file per file and kind of note, replaced atomically, so that any number of processes may
share it; a damaged note only causes the work to be done again. A note is valid while the file's size, inode and times
are unchanged. Nothing is noted of a file that changed very recently: it could change again within one tick of the file
system's clock.

A note is believed only if this user wrote it on this machine: each is sealed (`longrl_files.user_seal`) and names both.
"""

import contextlib
import hashlib
import json
import os
import platform
import secrets
import time
from pathlib import Path
from typing import Any, cast

from longrl_files.own_folders import OwnFolder
from longrl_files.user_seal import is_sealed, seal

UNSETTLED_SECONDS = 2.0
_MACHINE = Path("/etc/machine-id")


class _UnusableNoteError(Exception):
    """A note can't be read or written."""


class FileNotes:
    """Notes of one kind.

    Args:
        folder: Where notes are kept; made with the first one if the folder around it exists. One that can't be written
            to is not an error.
        max_bytes: The largest note.
    """

    def __init__(self, folder: Path, *, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._files = OwnFolder(folder.parent, error=_UnusableNoteError)

    def recall(self, path: Path, status: os.stat_result, subject: dict[str, Any]) -> dict[str, Any] | None:
        """What was noted of a file in this state; None if nothing was, or nothing that can be believed.

        Args:
            path: The file.
            status: What the system says of it now.
            subject: What else the note depends on, such as versions: JSON values.
        """
        state = _state(path, status) | subject
        try:
            known = self._files.read_json(self._name(path), max_bytes=self._max_bytes)
        except (_UnusableNoteError, OSError):
            return None
        if not isinstance(known, dict):
            return None
        values = cast(dict[str, Any], known)
        content, mark = values.get("content"), values.get("seal")
        is_of_this_state = values == {"state": state, "content": content, "seal": mark}
        if not is_of_this_state or not isinstance(content, dict) or not is_sealed(_sealed_bytes(state, content), mark):
            return None
        return cast(dict[str, Any], content)

    def remember(self, path: Path, status: os.stat_result, subject: dict[str, Any], content: dict[str, Any]) -> None:
        """Note something of a file, unless it has changed meanwhile, or so recently that it might again.

        Args:
            path: The file.
            status: What the system said of it before the work began.
            subject: As for `recall`.
            content: JSON values.
        """
        state = _state(path, status) | subject
        is_settled = max(status.st_mtime_ns, status.st_ctime_ns) < time.time_ns() - UNSETTLED_SECONDS * 1e9
        with contextlib.suppress(OSError, _UnusableNoteError):
            if not is_settled or _state(path, path.stat()) | subject != state:
                return
            mark = seal(_sealed_bytes(state, content))
            note = json.dumps({"state": state, "content": content, "seal": mark}).encode()
            if mark is not None and len(note) <= self._max_bytes:
                self._write(self._name(path), note)

    def _write(self, name: str, note: bytes) -> None:
        self._files.make_folder(self._folder.name)
        temporary = f"{self._folder.name}/.writing-{secrets.token_hex(8)}"
        try:
            with self._files.create(temporary) as file:
                file.write(note)
            self._files.replace(temporary, name)
        finally:
            self._files.remove(temporary)

    def _name(self, path: Path) -> str:
        return f"{self._folder.name}/{hashlib.sha256(os.fsencode(path.absolute())).hexdigest()}.json"


def user_cache() -> Path | None:
    """The folder for what can be found out again: `$XDG_CACHE_HOME/longrl`, or `~/.cache/longrl`.

    Returns:
        None for a user without a home.
    """
    named = os.environ.get("XDG_CACHE_HOME", "")
    try:
        cache = Path(named) if Path(named).is_absolute() else Path.home() / ".cache"
    except RuntimeError:
        return None
    return cache / "longrl"


def _state(path: Path, status: os.stat_result) -> dict[str, Any]:
    """Which state of which file this is, and who sees it where."""
    return {
        "path": os.fsencode(path.absolute()).decode(errors="backslashreplace"),
        "user": os.getuid(),
        "machine": _machine(),
        "device": status.st_dev,
        "size": status.st_size,
        "inode": status.st_ino,
        "mtime_ns": status.st_mtime_ns,
        "ctime_ns": status.st_ctime_ns,
    }


def _sealed_bytes(state: dict[str, Any], content: dict[str, Any]) -> bytes:
    return json.dumps([state, content], sort_keys=True).encode()


def _machine() -> str:
    """What tells this machine from others that see the same folders."""
    try:
        identity = _MACHINE.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        identity = ""
    return f"{identity} {platform.node()}".strip()
