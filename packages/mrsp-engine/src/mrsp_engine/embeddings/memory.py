"""Embeddings in memory: up to a number of bytes, keeping the most recently used; and such as are lent for a while."""

import threading
from collections import OrderedDict
from collections.abc import Generator, Hashable, Mapping
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

__all__ = ["Loans", "MemoryTier"]


class MemoryTier:
    """Tensors by name; the least recently used is evicted first. May be used by several threads.

    Args:
        budget_bytes: Maximum number of bytes.
    """

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self.num_bytes = 0
        self._tensors: OrderedDict[Hashable, Tensor] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, name: Hashable) -> Tensor | None:
        """The tensor of this name, or None; it becomes the most recently used one."""
        with self._lock:
            if name not in self._tensors:
                return None
            self._tensors.move_to_end(name)
            return self._tensors[name]

    def put(self, name: Hashable, tensor: Tensor) -> bool:
        """Keep a tensor, evicting others as needed; returns whether it fits at all."""
        with self._lock:
            self._forget(name)
            if tensor.nbytes > self.budget_bytes:
                return False
            self._tensors[name] = tensor
            self.num_bytes += tensor.nbytes
            while self.num_bytes > self.budget_bytes:
                self._forget(next(iter(self._tensors)))
            return True

    def _forget(self, name: Hashable) -> None:
        tensor = self._tensors.pop(name, None)
        self.num_bytes -= 0 if tensor is None else tensor.nbytes


class _LentHere(threading.local):
    """What stores have lent in this thread, by folder; ranks may be threads of one process."""

    def __init__(self) -> None:
        self.by_folder: dict[Path, dict[str, Tensor]] = {}


_lent_here = _LentHere()


class Loans:
    """Tensors that stand in for entries of a store for a while.

    Args:
        folder: That of the store; other stores of this folder see its loans too, in the thread in which they were made.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder.resolve()
        self._own: dict[str, Tensor] = {}

    def find(self, digest: str) -> Tensor | None:
        """What stands in for an entry: of this store's own loans, or else of another's."""
        found = self._own.get(digest)
        return _lent_here.by_folder.get(self._folder, {}).get(digest) if found is None else found

    @contextmanager
    def lend(self, tensors: Mapping[str, Tensor]) -> Generator[None]:
        """Let tensors stand in for the entries of their digests within a `with` block."""
        own_before, before = self._own, _lent_here.by_folder.get(self._folder, {})
        self._own = {**own_before, **tensors}
        _lent_here.by_folder[self._folder] = {**before, **tensors}
        try:
            yield
        finally:
            self._own = own_before
            _lent_here.by_folder[self._folder] = before
