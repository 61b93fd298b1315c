"""Cached digests of files, so that a video of many gigabytes is read once and not in every run.

They are notes about files (`longrl_files.file_notes`): valid while the file is unchanged, and trusted only if this user
wrote them on this machine, because a digest decides which embedding is used for a video. A store that was copied, or
that others can write to, can't vouch for a video here; what isn't trusted is read again.
"""

import hashlib
import os
import re
from io import BufferedReader
from pathlib import Path
from typing import Any, cast

from longrl_files.file_notes import FileNotes
from longrl_files.regular_files import open_regular
from mrsp_engine.errors import EngineError

__all__ = ["FileDigests"]

MOST_NOTE_BYTES = 1 << 16
_DIGEST = re.compile(r"[0-9a-f]{64}")
_SUBJECT: dict[str, Any] = {}  # a digest depends on nothing but the file


class FileDigests:
    """SHA-256 of files' bytes.

    Args:
        folder: Where digests are cached; created with the first one. A folder that can't be written to is not an error.
        is_read_only: Write nothing to the cache.

    Attributes:
        num_read: Number of files read by this object.
    """

    def __init__(self, folder: Path, *, is_read_only: bool = False) -> None:
        self.folder = folder
        self.num_read = 0
        self._is_read_only = is_read_only
        self._notes = FileNotes(folder, max_bytes=MOST_NOTE_BYTES)

    def digest(self, path: Path) -> str:
        """SHA-256 of a file's bytes, in hexadecimal.

        Raises:
            EngineError: The file can't be read.
        """
        path = path.absolute()
        with open_regular(path, error=EngineError) as file:
            try:
                status = os.fstat(file.fileno())
                known = (self._notes.recall(path, status, _SUBJECT) or {}).get("sha256")
                if isinstance(known, str) and _DIGEST.fullmatch(known):
                    return known
                found = hashlib.file_digest(cast(BufferedReader, file), "sha256").hexdigest()
            except OSError as error:
                raise EngineError(f"{path}: can't be read ({error.strerror})") from error
        self.num_read += 1
        if not self._is_read_only:
            self._notes.remember(path, status, _SUBJECT, {"sha256": found})
        return found
