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
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO, TypeVar

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
from mrsp_engine.embeddings.entry_folder import DIGEST, JOURNAL_NAME, PART_SUFFIX, EntryFolder
from mrsp_engine.errors import EngineError

__all__ = ["Chunks", "DiskTier", "StoreStats"]

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
        folder: Where they live; made if missing, unless it is only read.
        budget_bytes: Most bytes of all entries together; None for as many as the disk takes.
        is_read_only: Make, lock, change and remove nothing, damaged entries neither.

    Attributes:
        damaged: Entries found damaged by this object.
        bytes_read: Bytes of entries read by this object.
        is_needed: Tells of a digest whether this object must not make room for others by removing its entry.

    Raises:
        EngineUsageError: The folder can't be used, or is no store; here or later, something in it is a link or no file.
    """

    def __init__(self, folder: Path, budget_bytes: int | None, *, is_read_only: bool = False) -> None:
        self._files = EntryFolder(folder, is_read_only=is_read_only)
        self.folder = folder
        self.budget_bytes = budget_bytes
        self.damaged = 0
        self.bytes_read = 0
        self.is_needed: Callable[[str], bool] | None = None
        self._checked: dict[str, Identity] = {}

    def path(self, digest: str) -> Path:
        """Where the entry lies or would lie."""
        return self.folder / self._files.name(digest)

    def contains(self, digest: str) -> bool:
        """Whether a whole, undamaged entry exists. It is read through once per process and state of the file."""

        def check(entry: Entry) -> Identity:
            if self._checked.get(digest) != entry.identity:
                entry.check()
            return entry.identity

        identity = self._read(digest, check)
        if identity is not None:
            self._checked[digest] = identity
        return identity is not None

    def read(self, digest: str, reader: Callable[[Entry], Result]) -> Result | None:
        """Let `reader` read an entry; None if there is none. A damaged one is removed and counted."""
        return self._read(digest, reader)

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
        name = self._files.name(digest)
        if self.contains(digest):
            return False
        with self._written(name, key, num_rows, chunks) as temporary:
            self._make_room((self.folder / temporary).stat().st_size)
            with refusals(), self._files.locked():
                is_new = self._files.link(temporary, name)
        if is_new:
            # A line that can't be written is made up for when lines are counted.
            with contextlib.suppress(OSError), self._files.files.extend(JOURNAL_NAME) as journal:
                journal.write(f"{digest}\n".encode())
        return is_new

    def write_part(self, key: str, start: int, stop: int, chunks: Chunks) -> None:
        """Write rows `start` to `stop` of an entry, to be joined with others by `join_parts`.

        Raises:
            DiskRefusedError: As from `write`.
        """
        part = _part_key(key, start, stop)
        name = self._files.name(_digest(part), PART_SUFFIX)
        with self._written(name, part, stop - start, chunks) as temporary, refusals():
            self._files.files.replace(temporary, name)

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
        for name in self._parts(key, bounds):
            try:
                with self._files.files.open(name) as file:
                    entry = Entry(file)
                    for _, block in entry.blocks(0, entry.layout.num_rows):
                        yield block
            except (EngineError, DamagedEntryError) as error:
                raise EngineError(
                    f"{self.folder / name}: a part of an embedding is gone or damaged ({error})"
                ) from error

    def remove_parts(self, key: str, bounds: Sequence[int]) -> None:
        """Remove the parts of an entry."""
        for name in self._parts(key, bounds):
            with contextlib.suppress(OSError):
                self._files.files.remove(name)

    def _parts(self, key: str, bounds: Sequence[int]) -> list[str]:
        pairs = [(start, stop) for start, stop in pairwise(bounds) if stop > start]
        return [self._files.name(_digest(_part_key(key, *pair)), PART_SUFFIX) for pair in pairs]

    def stats(self) -> StoreStats:
        """Number and size of the entries."""
        sizes = [status.st_size for _, status in self._files.entries()]
        return StoreStats(entries=len(sizes), bytes=sum(sizes))

    def verify(self) -> list[str]:
        """Read every entry and list the digests of damaged ones, leaving them in place."""
        damaged: list[str] = []
        for digest, _ in self._files.entries():
            file = self._files.files.find(self._files.name(digest))
            if file is None:
                continue
            with file:
                try:
                    _open(file, digest).check()
                except DamagedEntryError:
                    damaged.append(digest)
        return damaged

    def prune(self, most_bytes: int) -> StoreStats:
        """Remove entries, the one used longest ago first, until no more than `most_bytes` or what is needed is left.

        Returns:
            What was removed.

        Raises:
            DiskRefusedError: The folder can't be changed.
        """
        self._require_writable()
        with refusals(), self._files.locked():
            entries = sorted(self._files.entries(), key=lambda entry: entry[1].st_atime_ns)
            excess = sum(status.st_size for _, status in entries) - most_bytes
            removed: list[int] = []
            for digest, status in entries:
                if sum(removed) >= excess:
                    break
                if self.is_needed is not None and self.is_needed(digest):
                    continue
                self._files.files.remove(self._files.name(digest))
                removed.append(status.st_size)
        return StoreStats(entries=len(removed), bytes=sum(removed))

    def remove(self, digest: str) -> None:
        """Remove an entry if it is there."""
        self._require_writable()
        with refusals(), self._files.locked():
            self._files.files.remove(self._files.name(digest))

    def count_encodes(self) -> int:
        """Entries ever written to the folder, by any process."""
        journal = self._files.files.find(JOURNAL_NAME)
        written: list[str] = []
        if journal is not None:
            with journal:
                lines = (
                    line.rstrip(b"\n").decode("ascii", "replace") for line in iter(partial(journal.readline, 99), b"")
                )
                written = [line for line in lines if DIGEST.fullmatch(line)]
        # A writer killed between the file and its line leaves an entry without one.
        unlogged = {digest for digest, _ in self._files.entries()}.difference(written)
        return len(written) + len(unlogged)

    def _read(self, digest: str, reader: Callable[[Entry], Result]) -> Result | None:
        name = self._files.name(digest)
        file = self._files.files.find(name)
        if file is None:
            return None
        with file:
            identity = identity_of(os.fstat(file.fileno()))
            try:
                entry = _open(file, digest)
                result = reader(entry)
            except DamagedEntryError:
                self.damaged += 1
                self._files.remove_damaged(name, identity)
                return None
            if not self._files.is_read_only:
                with contextlib.suppress(OSError):  # the least recently used is evicted first
                    os.utime(file.fileno(), ns=(time.time_ns(), identity[2]))
        self.bytes_read += entry.bytes_read
        return result

    def _require_writable(self) -> None:
        if self._files.is_read_only:
            raise DiskRefusedError("it is open for reading only")

    def _written(self, name: str, key: str, num_rows: int, chunks: Chunks) -> AbstractContextManager[str]:
        """A complete entry under a temporary name, gone afterwards."""
        if self.budget_bytes == 0:
            raise DiskRefusedError("the disk tier is switched off")
        self._require_writable()
        return self._files.written(name, lambda file: write_entry(file, key, num_rows, chunks(), self.budget_bytes))

    def _make_room(self, num_bytes: int) -> None:
        if self.budget_bytes is not None:
            self.prune(self.budget_bytes - num_bytes)
            if self.is_needed is not None and self.stats().bytes + num_bytes > self.budget_bytes:
                raise DiskRefusedError(f"{self.budget_bytes} bytes don't hold everything that is needed at one time")


def _open(file: BinaryIO, digest: str) -> Entry:
    entry = Entry(file)
    if _digest(entry.key) != digest:
        raise DamagedEntryError("the entry belongs to another key")
    return entry


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def _part_key(key: str, start: int, stop: int) -> str:
    return f"{key} rows {start} to {stop}"
