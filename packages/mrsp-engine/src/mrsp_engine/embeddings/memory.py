"""Embeddings in memory: up to a number of bytes, keeping the most recently used."""

import threading
from collections import OrderedDict
from collections.abc import Hashable

from torch import Tensor

__all__ = ["MemoryTier"]


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
