"""The files of a store's folder: names, temporary files, the lock, and what killed writers left.

An entry appears whole or not at all: it is written under a temporary name and linked to its own. Removing and linking
happen under one lock that the system releases with a process, so nobody removes what another has just put in its place.
The module doesn't know what is in an entry.

A folder is written to, and swept, only if it is a store: `.embedding-store` in it says so. An empty folder becomes one,
as does a folder from before that mark if it holds nothing but what a store has. Links in it are refused, because a
store may have been copied from anybody; a folder that is opened for reading stays as it is.

Layout: `ab/abcdef….safetensors` per entry, `….part` beside it for rows of an entry still being made, `.lock`.
"""

import contextlib
import fcntl
import os
import re
import secrets
import stat
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import BinaryIO

from longrl_files.messages import visible
from longrl_files.own_folders import OwnFolder
from mrsp_engine.embeddings.entries import Identity, identity_of, refusals
from mrsp_engine.errors import EngineUsageError

__all__ = ["DIGEST", "DIGESTS_NAME", "JOURNAL_NAME", "MARK_NAME", "PART_SUFFIX", "EntryFolder"]

MARK_NAME, LOCK_NAME, JOURNAL_NAME, DIGESTS_NAME = ".embedding-store", ".lock", "encodes.log", "digests"
MARK = b"An embedding store of mrsp-engine. Files here are written and removed by it.\n"
TEMPORARY_PREFIX = ".writing-"
ABANDONED_SECONDS = 24 * 3600.0
ENTRY_SUFFIX, PART_SUFFIX = ".safetensors", ".part"
DIGEST = re.compile(r"[0-9a-f]{64}")

_SUBFOLDER = re.compile(r"[0-9a-f]{2}")
_TEMPORARY = re.compile(r"\.writing-\w+")
_ENTRY = re.compile(rf"[0-9a-f]{{64}}(?:{re.escape(ENTRY_SUFFIX)}|{re.escape(PART_SUFFIX)})")


class EntryFolder:
    """A folder of files named by digests, for any number of processes, killed at any moment.

    Args:
        folder: Where they live; made if missing, unless it is only read.
        is_read_only: Make, lock, change and remove nothing.

    Raises:
        EngineUsageError: The folder can't be used, or isn't a store.
    """

    def __init__(self, folder: Path, *, is_read_only: bool = False) -> None:
        self.folder = folder
        self.is_read_only = is_read_only
        self.files = OwnFolder(
            folder, error=EngineUsageError, link_cure="a store has none; remove it or choose another folder"
        )
        if not is_read_only:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise EngineUsageError(
                    f"{folder}: can't hold the embedding store ({error.strerror}); choose another folder"
                ) from error
        is_marked = self._require_store()
        if not is_read_only:
            if not is_marked:
                self._mark()
            self._remove_abandoned()

    def name(self, digest: str, suffix: str = ENTRY_SUFFIX) -> str:
        """An entry's name in the folder."""
        if DIGEST.fullmatch(digest) is None:
            raise EngineUsageError(f"embedding key {digest!r}: expected 64 hexadecimal digits")
        return f"{digest[:2]}/{digest}{suffix}"

    @contextlib.contextmanager
    def written(self, name: str, write: Callable[[BinaryIO], None]) -> Generator[str]:
        """What `write` writes, under a temporary name beside `name`, gone afterwards.

        Raises:
            DiskRefusedError: The folder can't be written to.
        """
        subfolder = name.partition("/")[0]
        temporary = f"{subfolder}/{TEMPORARY_PREFIX}{secrets.token_hex(8)}"
        with refusals(), self.locked():
            self.files.make_folder(subfolder)
            file = self.files.create(temporary)
            fcntl.flock(file, fcntl.LOCK_EX)  # held while the writer lives
        try:
            with file:
                write(file)
                os.fchmod(file.fileno(), 0o644)
                yield temporary
        finally:
            self.files.remove(temporary)

    def entries(self) -> Iterator[tuple[str, os.stat_result]]:
        """The digests of the entries in order, and what the system says of each file."""
        for subfolder in self._subfolders():
            for name, status in self.files.statuses(subfolder):
                digest = name.removesuffix(ENTRY_SUFFIX)
                if digest != name and DIGEST.fullmatch(digest):
                    if not stat.S_ISREG(status.st_mode):
                        self.files.path(f"{subfolder}/{name}")
                    yield digest, status

    def link(self, temporary: str, name: str) -> bool:
        """Give a file its name unless the name is taken; whether it wasn't."""
        try:
            self.files.link(temporary, name)  # unlike a rename, tells which of two writers was first
        except FileExistsError:
            return False
        except OSError:  # a file system without hard links
            self.files.replace(temporary, name)
        return True

    def remove_damaged(self, name: str, identity: Identity) -> None:
        """Remove the file that was found damaged, not the one that may have taken its place since."""
        if self.is_read_only:
            return
        with contextlib.suppress(OSError), self.locked():
            status = self.files.status(name)
            if status is not None and identity_of(status) == identity:
                self.files.remove(name)

    @contextlib.contextmanager
    def locked(self) -> Generator[None]:
        """Nobody else links or removes an entry within this block."""
        with self.files.extend(LOCK_NAME) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _require_store(self) -> bool:
        """Whether the folder carries the mark; one that doesn't may hold nothing but what a store has.

        Raises:
            EngineUsageError: It holds something else, or something in it is a link.
        """
        found = self.files.statuses()
        modes = {name: status.st_mode for name, status in found}
        is_marked = MARK_NAME in modes
        for name in modes:
            if name in (MARK_NAME, LOCK_NAME, JOURNAL_NAME):
                if not stat.S_ISREG(modes[name]):
                    self.files.path(name)
            elif name == DIGESTS_NAME or _SUBFOLDER.fullmatch(name):
                if not stat.S_ISDIR(modes[name]):
                    self.files.names(name)
            elif not is_marked:
                raise self._no_store(name)
        if not is_marked:
            for subfolder in self._subfolders():
                for name in self.files.names(subfolder):
                    if not (_ENTRY.fullmatch(name) or _TEMPORARY.fullmatch(name)):
                        raise self._no_store(f"{subfolder}/{name}")
        return is_marked

    def _no_store(self, name: str) -> EngineUsageError:
        return EngineUsageError(
            f"{visible(str(self.folder))}: is not empty and no embedding store (it holds {visible(name, 60)}); choose "
            "an empty or a new folder"
        )

    def _mark(self) -> None:
        """Make the folder a store; where it can't be written to, nothing will be."""
        with contextlib.suppress(OSError), self.files.create(MARK_NAME) as file:
            file.write(MARK)

    def _subfolders(self) -> list[str]:
        return [name for name in self.files.names() if _SUBFOLDER.fullmatch(name)]

    def _remove_abandoned(self) -> None:
        """Remove what killed writers left: files nobody holds a lock on, and parts that nobody joined for a day."""
        with contextlib.suppress(OSError), self.locked():
            for subfolder in self._subfolders():
                for last in self.files.names(subfolder):
                    with contextlib.suppress(OSError):
                        if _TEMPORARY.fullmatch(last):
                            self._remove_unlocked(f"{subfolder}/{last}")
                        elif last.endswith(PART_SUFFIX) and _ENTRY.fullmatch(last):
                            self._remove_old(f"{subfolder}/{last}")

    def _remove_unlocked(self, name: str) -> None:
        status = self.files.status(name)
        if status is None or not stat.S_ISREG(status.st_mode):
            return
        with self.files.extend(name) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.files.remove(name)

    def _remove_old(self, name: str) -> None:
        status = self.files.status(name)
        if status is not None and stat.S_ISREG(status.st_mode) and status.st_mtime < time.time() - ABANDONED_SECONDS:
            self.files.remove(name)
