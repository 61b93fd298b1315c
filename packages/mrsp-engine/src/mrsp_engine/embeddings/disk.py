"""The store's folder: which entries there are, for any number of processes, killed at any moment.

`mrsp_engine.embeddings.entry_folder` handles the files; here entries are looked for, checked, joined from parts and
removed, the one used longest ago first when the budget is spent. A refusal of the disk is a value here, not an end: the
store goes on without it. `encodes.log` has one line per entry ever written.
"""

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from io import FileIO
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from mrsp_engine.embeddings.entries import (
    DamagedEntryError,
    DiskRefusedError,
    Entry,
    Identity,
    identity_of,
    refusals,
    write_entry,
)
from mrsp_engine.embeddings.entry_folder import DIGEST, PART_SUFFIX, EntryFolder
from mrsp_engine.errors import EngineError

__all__ = ["Chunks", "DiskTier", "StoreStats"]

JOURNAL_NAME = "encodes.log"

Result = TypeVar("Result")
Chunks = Callable[[], Iterable[Tensor]]
"""Makes the rows of an entry in order; called again if they have to be made again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreStats:
    """What a store's folder holds now."""

    entries: int
    bytes: int


class DiskTier:
    """A folder of entries named by the digests of their keys.

    Args:
        folder: Where they live; made if missing.
        budget_bytes: Most bytes of all entries together; None for as many as the disk takes.

    Attributes:
        damaged: Entries found damaged by this object.
        bytes_read: Bytes of entries read by this object.

    Raises:
        EngineUsageError: The folder can't be used.
    """

    def __init__(self, folder: Path, budget_bytes: int | None) -> None:
        self._files = EntryFolder(folder)
        self.folder = folder
        self.budget_bytes = budget_bytes
        self.damaged = 0
        self.bytes_read = 0
        self._checked: dict[str, Identity] = {}

    def path(self, digest: str) -> Path:
        """Where the entry lies or would lie."""
        return self._files.path(digest)

    def contains(self, digest: str) -> bool:
        """Whether a whole, undamaged entry exists. It is read through once per process and state of the file."""
        path = self.path(digest)

        def check(entry: Entry) -> Identity:
            if self._checked.get(digest) != entry.identity:
                entry.check()
            return entry.identity

        identity = self._read(path, digest, check)
        if identity is not None:
            self._checked[digest] = identity
        return identity is not None

    def read(self, digest: str, reader: Callable[[Entry], Result]) -> Result | None:
        """Let `reader` read an entry; None if there is none. A damaged one is removed and counted."""
        return self._read(self.path(digest), digest, reader)

    def write(self, key: str, num_rows: int, chunks: Chunks) -> bool:
        """Write an entry.

        Args:
            key: What it depends on, as canonical JSON.
            num_rows: Its number of rows.
            chunks: Makes them.

        Returns:
            Whether the entry is new; False if it was there or another process came first.

        Raises:
            DiskRefusedError: The disk is full, or not writable, or the entry larger than the budget.
        """
        digest = _digest(key)
        path = self.path(digest)
        if self.contains(digest):
            return False
        with self._written(path, key, num_rows, chunks) as temporary:
            self._make_room(temporary.stat().st_size)
            with refusals(), self._files.locked():
                is_new = self._files.link(temporary, path)
        if is_new:
            # A line that can't be written is made up for when lines are counted.
            with contextlib.suppress(OSError), (self.folder / JOURNAL_NAME).open("a") as journal:
                journal.write(f"{digest}\n")
        return is_new

    def write_part(self, key: str, start: int, stop: int, chunks: Chunks) -> None:
        """Write rows `start` to `stop` of an entry, to be joined with others by `join_parts`.

        Raises:
            DiskRefusedError: As from `write`.
        """
        part = _part_key(key, start, stop)
        path = self._files.path(_digest(part), PART_SUFFIX)
        with self._written(path, part, stop - start, chunks) as temporary, refusals():
            temporary.replace(path)

    def join_parts(self, key: str, bounds: Sequence[int]) -> bool:
        """Write an entry from its parts, the rows between neighbouring `bounds`, whose parts stay.

        Raises:
            DiskRefusedError: As from `write`.
            EngineError: A part is missing or damaged.
        """
        return self.write(key, bounds[-1], lambda: self.read_parts(key, bounds))

    def read_parts(self, key: str, bounds: Sequence[int]) -> Iterator[Tensor]:
        """The rows of an entry from its parts, a block at a time.

        Raises:
            EngineError: A part is missing or damaged.
        """
        for path in self._parts(key, bounds):
            try:
                with path.open("rb", buffering=0) as file:
                    entry = Entry(file)
                    for _, block in entry.blocks(0, entry.layout.num_rows):
                        yield block
            except (OSError, DamagedEntryError) as error:
                raise EngineError(f"{path}: a part of an embedding is gone or damaged ({error})") from error

    def remove_parts(self, key: str, bounds: Sequence[int]) -> None:
        """Remove the parts of an entry."""
        for path in self._parts(key, bounds):
            with contextlib.suppress(OSError):
                path.unlink()

    def _parts(self, key: str, bounds: Sequence[int]) -> list[Path]:
        pairs = [(start, stop) for start, stop in pairwise(bounds) if stop > start]
        return [self._files.path(_digest(_part_key(key, *pair)), PART_SUFFIX) for pair in pairs]

    def stats(self) -> StoreStats:
        """Number and size of the entries."""
        sizes = [status.st_size for _, status in self._files.entries()]
        return StoreStats(entries=len(sizes), bytes=sum(sizes))

    def verify(self) -> list[str]:
        """Read every entry and list the digests of damaged ones, leaving them in place."""
        damaged: list[str] = []
        for path, _ in self._files.entries():
            try:
                with path.open("rb", buffering=0) as file:
                    _open(file, path.stem).check()
            except FileNotFoundError:
                continue  # somebody has just removed it
            except (OSError, DamagedEntryError):
                damaged.append(path.stem)
        return damaged

    def prune(self, most_bytes: int) -> StoreStats:
        """Remove entries, the one used longest ago first, until no more than `most_bytes` are left.

        Returns:
            What was removed.

        Raises:
            DiskRefusedError: The folder can't be changed.
        """
        with refusals(), self._files.locked():
            entries = sorted(self._files.entries(), key=lambda entry: entry[1].st_atime_ns)
            excess = sum(status.st_size for _, status in entries) - most_bytes
            removed: list[int] = []
            for path, status in entries:
                if sum(removed) >= excess:
                    break
                path.unlink(missing_ok=True)
                removed.append(status.st_size)
        return StoreStats(entries=len(removed), bytes=sum(removed))

    def remove(self, digest: str) -> None:
        """Remove an entry if it is there."""
        with refusals(), self._files.locked():
            self.path(digest).unlink(missing_ok=True)

    def count_encodes(self) -> int:
        """Entries ever written to the folder, by any process."""
        try:
            lines = (self.folder / JOURNAL_NAME).read_text(errors="replace").splitlines()
        except OSError:
            lines = []
        written = [line for line in lines if DIGEST.fullmatch(line)]
        # A writer killed between the file and its line leaves an entry without one.
        unlogged = {path.stem for path, _ in self._files.entries()}.difference(written)
        return len(written) + len(unlogged)

    def _read(self, path: Path, digest: str, reader: Callable[[Entry], Result]) -> Result | None:
        try:
            file = path.open("rb", buffering=0)
        except OSError:
            return None
        with file:
            identity = identity_of(os.fstat(file.fileno()))
            try:
                entry = _open(file, digest)
                result = reader(entry)
            except DamagedEntryError:
                self.damaged += 1
                self._files.remove_damaged(path, identity)
                return None
        self.bytes_read += entry.bytes_read
        with contextlib.suppress(OSError):  # the least recently used is evicted first
            os.utime(path, ns=(time.time_ns(), identity[2]))
        return result

    def _written(self, path: Path, key: str, num_rows: int, chunks: Chunks) -> AbstractContextManager[Path]:
        """A complete entry under a temporary name, gone afterwards."""
        if self.budget_bytes == 0:
            raise DiskRefusedError("the disk tier is switched off")
        return self._files.written(path, lambda file: write_entry(file, key, num_rows, chunks(), self.budget_bytes))

    def _make_room(self, num_bytes: int) -> None:
        if self.budget_bytes is not None:
            self.prune(self.budget_bytes - num_bytes)


def _open(file: FileIO, digest: str) -> Entry:
    entry = Entry(file)
    if _digest(entry.key) != digest:
        raise DamagedEntryError("the entry belongs to another key")
    return entry


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def _part_key(key: str, start: int, stop: int) -> str:
    return f"{key} rows {start} to {stop}"
