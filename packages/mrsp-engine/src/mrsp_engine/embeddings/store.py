"""Embeddings on disk, one safetensors file per key.

Any number of processes may read and write one folder: a file appears whole or not at all, carries its key and the
checksum of its numbers, and is mapped into memory rather than read. A file that fails its checksum is removed, counted
and reported as missing, so it is encoded again. The store doesn't know what an embedding means.

Layout: `ab/abcdef….safetensors` per entry, and `encodes.log` with one line per entry ever written.
"""

import contextlib
import hashlib
import os
import re
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor

from mrsp_engine.embeddings.key import EmbeddingKey, tensor_digest
from mrsp_engine.errors import EngineError, EngineUsageError

__all__ = ["EmbeddingStore", "StoreCounters", "StoreStats"]

TENSOR_NAME = "embeddings"
JOURNAL_NAME = "encodes.log"
TEMPORARY_PREFIX = ".writing-"
ABANDONED_SECONDS = 24 * 3600.0
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreCounters:
    """What happened to a store.

    Attributes:
        encodes: Entries ever written to the folder, by any process; an entry lost and written again counts twice.
        hits: Entries this object handed out.
        damaged: Entries this object found damaged.
    """

    encodes: int
    hits: int
    damaged: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreStats:
    """What a store holds now."""

    entries: int
    bytes: int


class _DamagedEntryError(Exception):
    """A file of the store isn't what its name says."""


class EmbeddingStore:
    """A folder of embeddings addressed by key.

    Args:
        folder: Where the entries live; made if missing.

    Raises:
        EngineUsageError: If the folder can't be used.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._hits = 0
        self._damaged = 0
        self._verified: dict[str, tuple[int, int, int]] = {}  # digest → inode, size, time of change
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._remove_abandoned()
        except OSError as error:
            raise EngineUsageError(f"{folder}: can't hold the embedding store ({error.strerror}); {_CURE}") from error

    @property
    def counters(self) -> StoreCounters:
        """Counts so far; `encodes` is that of the folder, over all processes and runs."""
        return StoreCounters(encodes=self._count_encodes(), hits=self._hits, damaged=self._damaged)

    def path(self, key: EmbeddingKey | str) -> Path:
        """Where the entry of a key lies or would lie."""
        digest = key if isinstance(key, str) else key.digest
        if _DIGEST.fullmatch(digest) is None:
            raise EngineUsageError(f"embedding key {digest!r}: expected 64 hexadecimal digits")
        return self.folder / digest[:2] / f"{digest}.safetensors"

    def contains(self, key: EmbeddingKey | str) -> bool:
        """Whether a whole entry of this key exists; a damaged one is removed and counted."""
        return self._load(self.path(key)) is not None

    def get(self, key: EmbeddingKey | str, /) -> Tensor | None:
        """The embedding of a key, mapped from disk, or None if there is none.

        Args:
            key: The key or its digest.

        Returns:
            A tensor that must not be written to, or None.
        """
        tensor = self._load(self.path(key))
        self._hits += tensor is not None
        return tensor

    def put(self, key: EmbeddingKey, tensor: Tensor) -> bool:
        """Write an entry, whole or not at all.

        Args:
            key: What the embedding depends on.
            tensor: The embedding.

        Returns:
            Whether the entry is new; False if another process wrote it first.

        Raises:
            EngineError: If numbers aren't finite or the disk refuses.
        """
        if not bool(torch.isfinite(tensor).all()):
            raise EngineError(f"embedding {key.digest}: not all numbers are finite; check the encoder's dtype")
        payload = tensor.detach().cpu().contiguous()
        metadata = {"key": key.to_json(), "sha256": tensor_digest(payload)}
        path = self.path(key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._load(path)  # removes a damaged entry, which would otherwise count as present
            is_new = _write_once(path, to_safetensors({TENSOR_NAME: payload}, metadata=metadata))
            if is_new:
                with (self.folder / JOURNAL_NAME).open("a") as journal:
                    journal.write(f"{key.digest}\n")
        except OSError as error:
            reason = error.strerror or str(error)
            raise EngineError(
                f"{self.folder}: can't store an embedding of {payload.nbytes} bytes ({reason}); {_CURE}"
            ) from error
        return is_new

    def stats(self) -> StoreStats:
        """Number and size of the entries."""
        sizes: list[int] = []
        for path in self._entries():
            with contextlib.suppress(FileNotFoundError):
                sizes.append(path.stat().st_size)
        return StoreStats(entries=len(sizes), bytes=sum(sizes))

    def verify(self) -> list[str]:
        """Read every entry and list the digests of damaged ones, leaving them in place."""
        damaged: list[str] = []
        for path in self._entries():
            try:
                _read(path, check=True)
            except FileNotFoundError:
                continue
            except _DamagedEntryError:
                damaged.append(path.stem)
        return damaged

    def _load(self, path: Path) -> Tensor | None:
        try:
            status = path.stat()
            identity = (status.st_ino, status.st_size, status.st_mtime_ns)
            tensor = _read(path, check=self._verified.get(path.stem) != identity)
        except FileNotFoundError:
            return None
        except _DamagedEntryError:
            self._damaged += 1
            with contextlib.suppress(OSError):
                path.unlink()
            return None
        self._verified[path.stem] = identity
        return tensor

    def _entries(self) -> Iterator[Path]:
        for path in sorted(self.folder.glob("??/*.safetensors")):
            if _DIGEST.fullmatch(path.stem):
                yield path

    def _count_encodes(self) -> int:
        try:
            lines = (self.folder / JOURNAL_NAME).read_text().splitlines()
        except FileNotFoundError:
            lines = []
        written = [line for line in lines if _DIGEST.fullmatch(line)]
        # A writer killed between the file and its line leaves an entry without one.
        unlogged = {path.stem for path in self._entries()}.difference(written)
        return len(written) + len(unlogged)

    def _remove_abandoned(self) -> None:
        oldest = time.time() - ABANDONED_SECONDS
        for path in self.folder.glob(f"??/{TEMPORARY_PREFIX}*"):
            with contextlib.suppress(OSError):
                if path.stat().st_mtime < oldest:
                    path.unlink()


_CURE = "free space there or choose another folder for the embedding store"


def _read(path: Path, *, check: bool) -> Tensor:
    try:
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
            tensor: Tensor = file.get_tensor(TENSOR_NAME)
    except FileNotFoundError:
        raise
    except (SafetensorError, OSError, ValueError) as error:
        raise _DamagedEntryError(str(error)) from error
    if check:
        if hashlib.sha256(metadata.get("key", "").encode()).hexdigest() != path.stem:
            raise _DamagedEntryError("the entry belongs to another key")
        if tensor_digest(tensor) != metadata.get("sha256"):
            raise _DamagedEntryError("checksum mismatch")
    return tensor


def _write_once(path: Path, data: bytes) -> bool:
    """Make `path` hold `data` unless it exists; whether it was made here."""
    descriptor, name = tempfile.mkstemp(prefix=TEMPORARY_PREFIX, dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        try:
            path.hardlink_to(temporary)  # unlike a rename, tells which of two writers was first
        except FileExistsError:
            return False
        except OSError:  # a file system without hard links
            temporary.replace(path)
        return True
    finally:
        temporary.unlink(missing_ok=True)
