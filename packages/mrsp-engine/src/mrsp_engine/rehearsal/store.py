"""An embedding store that keeps nothing: it lets everything be encoded, and hands out rows without numbers.

Rows lie in the host's memory, as in the real store, and don't count as a device's.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from mrsp_engine.embeddings.disk import DiskTier
from mrsp_engine.embeddings.key import EmbeddingKey
from mrsp_engine.embeddings.store import EmbeddingStore
from mrsp_engine.rehearsal.recorder import StepRecorder

__all__ = ["RehearsedStore"]

Chunks = Callable[[], Iterable[Tensor]]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredRows:
    """What the rows of an entry are like.

    Attributes:
        num_rows: How many there are.
        row_shape: Shape of one.
        dtype: Type of their numbers.
    """

    num_rows: int
    row_shape: tuple[int, ...]
    dtype: torch.dtype


class _RehearsedDisk(DiskTier):
    """Takes the first piece of what is written, and notes what its rows are like; the other pieces are like it.

    Args:
        folder: A scratch folder.
        is_taking: Whether to take it at all: what one rank encodes is like what the others encode.
    """

    def __init__(self, folder: Path, *, is_taking: bool) -> None:
        super().__init__(folder, None)
        self.written: dict[str, StoredRows] = {}
        self._is_taking = is_taking

    def contains(self, digest: str) -> bool:
        """See `DiskTier.contains`."""
        return digest in self.written

    def write(self, key: str, num_rows: int, chunks: Chunks) -> bool:
        """See `DiskTier.write`."""
        self._note(key, num_rows, chunks)
        return True

    def write_part(self, key: str, start: int, stop: int, chunks: Chunks) -> None:
        """See `DiskTier.write_part`."""
        self._note(key, stop - start, chunks)

    def join_parts(self, key: str, bounds: Sequence[int]) -> bool:
        """See `DiskTier.join_parts`."""
        return True

    def remove_parts(self, key: str, bounds: Sequence[int]) -> None:
        """See `DiskTier.remove_parts`."""

    def _note(self, key: str, num_rows: int, chunks: Chunks) -> None:
        if not self._is_taking:
            return
        first = next(iter(chunks()))
        digest = hashlib.sha256(key.encode()).hexdigest()
        self.written[digest] = StoredRows(num_rows=num_rows, row_shape=tuple(first.shape[1:]), dtype=first.dtype)


class RehearsedStore(EmbeddingStore):
    """See `EmbeddingStore`.

    Args:
        folder: A scratch folder.
        recorder: Watches the rank that uses the store.
        fakes: The mode in which its rows are made.
        is_encoding: Whether this rank really encodes a first piece of what it is given.
    """

    disk: _RehearsedDisk

    def __init__(self, folder: Path, recorder: StepRecorder, fakes: FakeTensorMode, *, is_encoding: bool) -> None:
        super().__init__(folder)
        self.disk = _RehearsedDisk(folder, is_taking=is_encoding)
        self._recorder = recorder
        self._fakes = fakes

    def expect(self, key: EmbeddingKey, rows: StoredRows) -> None:
        """Hand out such rows under a key from now on, as if all ranks together had stored them."""
        self.disk.written[key.digest] = rows

    def contains(self, key: EmbeddingKey | str) -> bool:
        """See `EmbeddingStore.contains`."""
        return self.holds(key) or self.disk.contains(key if isinstance(key, str) else key.digest)

    def get(self, key: EmbeddingKey | str, /, *, device: torch.device | None = None) -> Tensor | None:
        """See `EmbeddingStore.get`."""
        digest = key if isinstance(key, str) else key.digest
        if self.lends(digest) or digest not in self.disk.written:
            return super().get(digest, device=device)
        return self._make(digest, self.disk.written[digest].num_rows)

    def read_rows(
        self, key: EmbeddingKey | str, start: int, stop: int, *, device: torch.device | None = None
    ) -> Tensor | None:
        """See `EmbeddingStore.read_rows`."""
        digest = key if isinstance(key, str) else key.digest
        if self.lends(digest) or digest not in self.disk.written:
            return super().read_rows(digest, start, stop, device=device)
        return self._make(digest, stop - start)

    def _make(self, digest: str, num_rows: int) -> Tensor:
        rows = self.disk.written[digest]
        shape = (num_rows, *rows.row_shape)
        if not rows.dtype.is_floating_point:
            return torch.zeros(shape, dtype=rows.dtype)  # frames, which are real all the way to the tower
        with self._recorder.host(), self._fakes:
            return torch.empty(shape, dtype=rows.dtype)
