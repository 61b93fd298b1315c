"""The files of a store's folder: names, temporary files, the lock, and what killed writers left.

An entry appears whole or not at all: it is written under a temporary name and linked to its own. Removing and linking
happen under one lock that the system releases with a process, so nobody removes what another has just put in its place.
The module doesn't know what is in an entry.

Layout: `ab/abcdef….safetensors` per entry, `….part` beside it for rows of an entry still being made, `.lock`.
"""

import contextlib
import errno
import fcntl
import os
import re
import stat
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import BinaryIO

from mrsp_engine.embeddings.entries import Identity, identity_of, refusals
from mrsp_engine.errors import EngineUsageError

__all__ = ["DIGEST", "PART_SUFFIX", "EntryFolder"]

LOCK_NAME = ".lock"
TEMPORARY_PREFIX = ".writing-"
ABANDONED_SECONDS = 24 * 3600.0
ENTRY_SUFFIX, PART_SUFFIX = ".safetensors", ".part"
DIGEST = re.compile(r"[0-9a-f]{64}")


class EntryFolder:
    """A folder of files named by digests, for any number of processes, killed at any moment.

    Args:
        folder: Where they live; made if missing.

    Raises:
        EngineUsageError: The folder can't be used.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise EngineUsageError(
                f"{folder}: can't hold the embedding store ({error.strerror}); choose another folder"
            ) from error
        self._remove_abandoned()

    def path(self, digest: str, suffix: str = ENTRY_SUFFIX) -> Path:
        """Where the entry lies or would lie."""
        if DIGEST.fullmatch(digest) is None:
            raise EngineUsageError(f"embedding key {digest!r}: expected 64 hexadecimal digits")
        return self.folder / digest[:2] / f"{digest}{suffix}"

    @contextlib.contextmanager
    def written(self, path: Path, write: Callable[[BinaryIO], None]) -> Generator[Path]:
        """What `write` writes, under a temporary name beside `path`, gone afterwards.

        Raises:
            DiskRefusedError: The folder can't be written to.
        """
        with refusals(), self.locked():
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor, name = tempfile.mkstemp(prefix=TEMPORARY_PREFIX, dir=path.parent)
            fcntl.flock(descriptor, fcntl.LOCK_EX)  # held while the writer lives
        temporary = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as file:
                write(file)
                temporary.chmod(0o644)
                yield temporary
        finally:
            temporary.unlink(missing_ok=True)

    def entries(self) -> Iterator[tuple[Path, os.stat_result]]:
        """The entries, and what the system says of each."""
        for path in sorted(self.folder.glob(f"??/*{ENTRY_SUFFIX}")):
            with contextlib.suppress(OSError):
                status = path.stat()
                if DIGEST.fullmatch(path.stem) and stat.S_ISREG(status.st_mode):
                    yield path, status

    @staticmethod
    def link(temporary: Path, path: Path) -> bool:
        """Give a file its name unless a file that can be read has it; whether none had.

        Raises:
            IsADirectoryError: A folder has the name.
        """
        try:
            path.hardlink_to(temporary)  # unlike a rename, tells which of two writers was first
        except FileExistsError:
            if path.is_dir():
                raise IsADirectoryError(errno.EISDIR, f"{path} is a folder, remove it") from None
            if path.is_file() and os.access(path, os.R_OK):
                return False
            temporary.replace(path)
        except OSError:  # a file system without hard links
            temporary.replace(path)
        return True

    def remove_damaged(self, path: Path, identity: Identity) -> None:
        """Remove the file that was found damaged, not the one that may have taken its place since."""
        with contextlib.suppress(OSError), self.locked():
            if identity_of(path.stat()) == identity:
                path.unlink()

    @contextlib.contextmanager
    def locked(self) -> Generator[None]:
        """Nobody else links or removes an entry within this block."""
        with (self.folder / LOCK_NAME).open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _remove_abandoned(self) -> None:
        """Remove what killed writers left: files nobody holds a lock on, and parts that nobody joined for a day."""
        with contextlib.suppress(OSError), self.locked():
            for path in self.folder.glob(f"??/{TEMPORARY_PREFIX}*"):
                with contextlib.suppress(OSError), path.open("ab") as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path.unlink()
            for path in self.folder.glob(f"??/*{PART_SUFFIX}"):
                with contextlib.suppress(OSError):
                    if path.stat().st_mtime < time.time() - ABANDONED_SECONDS:
                        path.unlink()
