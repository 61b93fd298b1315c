"""Embeddings by key, wherever they are: on the device, in this process's memory, or on disk.

A reader asks for an embedding or for some of its rows and needn't know where they lie. What is read from disk is
checked every time and may then stay in memory; each tier has a budget of bytes, and the least recently used is evicted
first. When the disk refuses, the embedding stays in memory and one line is logged. The store doesn't know what an
embedding means.

Shape legend: N rows of an entry.
"""

import logging
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mrsp_engine.embeddings.digests import FileDigests
from mrsp_engine.embeddings.disk import Chunks, DiskTier, StoreStats
from mrsp_engine.embeddings.entries import DiskRefusedError, Entry
from mrsp_engine.embeddings.entry_folder import DIGESTS_NAME
from mrsp_engine.embeddings.key import EmbeddingKey
from mrsp_engine.embeddings.limits import StoreLimits
from mrsp_engine.embeddings.lookups import StoreLookups
from mrsp_engine.embeddings.memory import Loans, MemoryTier
from mrsp_engine.errors import EngineError

__all__ = ["EmbeddingStore", "StoreCounters", "StoreLimits", "StoreStats"]

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreCounters:
    """What happened to a store.

    Attributes:
        encodes: Entries ever written to the folder, by any process, and those this object had to keep in memory
            instead; an entry lost and written again counts twice.
        hits: Times this object handed something out.
        damaged: Entries this object found damaged.
        bytes_read: Bytes of entries this object read from disk.
    """

    encodes: int
    hits: int
    damaged: int
    bytes_read: int


class EmbeddingStore:
    """Embeddings addressed by key.

    Args:
        folder: Where the disk tier lives; made if missing, unless it is only read.
        limits: Budgets of the tiers.
        is_read_only: Make, lock, change and remove nothing in the folder.

    Attributes:
        disk: The disk tier.
        digests: Remembered digests of the files that embeddings were made from.
        lookups: What `mrsp_engine.encoding.parallel.encode_media` looked for so far.

    Raises:
        EngineUsageError: If the folder can't be used, or is neither empty nor a store.
    """

    def __init__(self, folder: Path, limits: StoreLimits | None = None, *, is_read_only: bool = False) -> None:
        self.folder = folder
        self.limits = limits or StoreLimits()
        self.disk = DiskTier(folder, self.limits.disk_bytes, is_read_only=is_read_only)
        self.digests = FileDigests(folder / DIGESTS_NAME, is_read_only=is_read_only)
        self._host = MemoryTier(self.limits.host_bytes)
        self._device = MemoryTier(self.limits.device_bytes)
        self._loans = Loans(folder)
        self.lookups = StoreLookups()
        self._hits = 0
        self._kept_in_memory = 0
        self._is_disk_refusing = False

    @property
    def counters(self) -> StoreCounters:
        """Counts so far; `encodes` is that of the folder, over all processes and runs."""
        return StoreCounters(
            encodes=self.disk.count_encodes() + self._kept_in_memory,
            hits=self._hits,
            damaged=self.disk.damaged,
            bytes_read=self.disk.bytes_read,
        )

    @property
    def is_disk_refusing(self) -> bool:
        """Whether the disk refused the embedding that was stored last."""
        return self._is_disk_refusing

    def path(self, key: EmbeddingKey | str) -> Path:
        """Where the entry of a key lies or would lie on disk."""
        return self.disk.path(_digest(key))

    def contains(self, key: EmbeddingKey | str) -> bool:
        """Whether an entry of this key can be had; a damaged one is removed and counted."""
        return self.holds(key) or self.disk.contains(_digest(key))

    def get(self, key: EmbeddingKey | str, /, *, device: torch.device | None = None) -> Tensor | None:
        """The whole embedding of a key, [N, …], or None if there is none.

        Args:
            key: The key or its digest.
            device: Where it is needed; in the host's memory if not given.

        Returns:
            A tensor that must not be written to, or None.
        """
        return self._find(_digest(key), None, device)

    def read_rows(
        self, key: EmbeddingKey | str, start: int, stop: int, *, device: torch.device | None = None
    ) -> Tensor | None:
        """Some rows of an embedding, [stop - start, …]; only the blocks that hold them are read from disk.

        Args:
            key: The key or its digest.
            start: First row.
            stop: The row behind the last.
            device: Where they are needed; in the host's memory if not given.

        Returns:
            A tensor that must not be written to, or None if there is no such embedding.

        Raises:
            EngineError: The embedding has fewer rows.
        """
        if not 0 <= start <= stop:
            raise ValueError(f"rows {start} to {stop}: expected an ascending range")
        return self._find(_digest(key), (start, stop), device)

    def put(self, key: EmbeddingKey, tensor: Tensor) -> bool:
        """Store an embedding of one piece; see `put_chunks`."""
        return self.put_chunks(key, tensor.shape[0] if tensor.ndim else 0, lambda: [tensor])

    def put_chunks(self, key: EmbeddingKey, num_rows: int, chunks: Chunks) -> bool:
        """Store an embedding that is made piece by piece; on its way to disk it is never in memory as a whole.

        Args:
            key: What the embedding depends on.
            num_rows: Its rows N.
            chunks: Makes its rows in order. Called a second time if the disk refuses, as a rule after its first piece.

        Returns:
            Whether the entry is new; False if another process wrote it first.

        Raises:
            EngineError: If numbers aren't finite, or neither disk nor memory can hold the embedding.
        """
        try:
            is_new = self.disk.write(key.to_json(), num_rows, chunks)
        except DiskRefusedError as error:
            self.report(error)
            if self.holds(key):
                return False
            self.hold(key.digest, torch.cat([chunk.detach().cpu() for chunk in chunks()]), is_encode=True)
            return True
        self._is_disk_refusing = False
        return is_new

    @contextmanager
    def lend(self, tensors: Mapping[str, Tensor]) -> Generator[None]:
        """Let tensors stand in for entries of their digests within a `with` block, gradients included.

        In the same thread they also do in other stores of the folder, such as that of a sampler opened by the caller.
        """
        with self._loans.lend(tensors):
            yield

    def lends(self, key: EmbeddingKey | str) -> bool:
        """Whether a tensor of `lend` stands in for this embedding."""
        return self._loans.find(_digest(key)) is not None

    def stats(self) -> StoreStats:
        """Number and size of the entries on disk."""
        return self.disk.stats()

    def verify(self) -> list[str]:
        """Read every entry on disk and list the digests of damaged ones, leaving them in place."""
        return self.disk.verify()

    def hold(self, digest: str, tensor: Tensor, *, is_encode: bool) -> None:
        """Keep an embedding that the disk refused in the host's memory.

        Args:
            digest: Digest of its key.
            tensor: The embedding.
            is_encode: Count it as encoded here.

        Raises:
            EngineError: The budget can't hold it.
        """
        if not bool(torch.isfinite(tensor).all()):
            raise EngineError(f"embedding {digest[:12]}…: not all numbers are finite; check the encoder's dtype")
        if not self._host.put(digest, tensor):
            raise EngineError(
                f"{self.folder}: the disk refuses an embedding of {tensor.nbytes} bytes, and the "
                f"{self.limits.host_bytes} bytes of memory for embeddings (host_bytes) can't hold it; {_CURE}"
            )
        self._kept_in_memory += is_encode

    def holds(self, key: EmbeddingKey | str) -> bool:
        """Whether the embedding is in this process's memory."""
        digest = _digest(key)
        return self._loans.find(digest) is not None or self._host.get(digest) is not None

    def _find(self, digest: str, rows: tuple[int, int] | None, device: torch.device | None) -> Tensor | None:
        live = self._loans.find(digest)
        if live is not None:
            found = live if rows is None else _cut(live, rows, digest)
        else:
            found = self._from_device(digest, rows, device) if device is not None else None
            if found is None:
                found = self._from_host(digest, rows)
                if found is not None and device is not None:
                    found = found.to(device)
                    self._device.put((digest, rows, device), found)
        if found is not None:
            self._hits += 1
            found = found if device is None else found.to(device)
        return found

    def _from_device(self, digest: str, rows: tuple[int, int] | None, device: torch.device) -> Tensor | None:
        found = self._device.get((digest, rows, device))
        if found is None and rows is not None:
            whole = self._device.get((digest, None, device))
            found = None if whole is None else _cut(whole, rows, digest)
        return found

    def _from_host(self, digest: str, rows: tuple[int, int] | None) -> Tensor | None:
        whole = self._host.get(digest)
        if whole is not None:
            return whole if rows is None else _cut(whole, rows, digest)
        if rows is None:
            return self._read_whole(digest)
        found = self._host.get((digest, rows))
        if found is None:
            found = self.disk.read(digest, lambda entry: _read_rows(entry, rows, digest))
            if found is not None:
                self._host.put((digest, rows), found)
        return found

    def _read_whole(self, digest: str) -> Tensor | None:
        def read(entry: Entry) -> Tensor:
            num_bytes = entry.layout.num_rows * entry.layout.row_bytes
            if num_bytes > self._host.budget_bytes:
                return entry.map(self.disk.path(digest))
            return entry.read(0, entry.layout.num_rows)

        found = self.disk.read(digest, read)
        if found is not None:
            self._host.put(digest, found)  # a mapped one is larger than the budget and isn't taken
        return found

    def report(self, refusal: DiskRefusedError) -> None:
        """Log that the disk refuses, the first time it does."""
        if not self._is_disk_refusing and self.limits.disk_bytes != 0:
            _logger.warning(
                "%s: embeddings stay in memory, the disk refuses them (%s); %s", self.folder, refusal, _CURE
            )
        self._is_disk_refusing = True


_CURE = "free space there or choose another folder for the embedding store"


def _digest(key: EmbeddingKey | str) -> str:
    return key if isinstance(key, str) else key.digest


def _cut(tensor: Tensor, rows: tuple[int, int], digest: str) -> Tensor:
    _require_rows(tensor.shape[0], rows, digest)
    return tensor[rows[0] : rows[1]]


def _read_rows(entry: Entry, rows: tuple[int, int], digest: str) -> Tensor:
    _require_rows(entry.layout.num_rows, rows, digest)
    return entry.read(*rows)


def _require_rows(num_rows: int, rows: tuple[int, int], digest: str) -> None:
    if rows[1] > num_rows:
        raise EngineError(
            f"embedding {digest[:12]}… has {num_rows} rows, rows {rows[0]} to {rows[1]} were asked for; "
            "it was made for another model"
        )
