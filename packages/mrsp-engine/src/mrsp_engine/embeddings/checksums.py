"""Integrity of an entry's bytes: a checksum for every block of numbers, and a seal over the header.

The module handles bytes and digests; it is independent of files and tensors.
"""

import hashlib
import json
from typing import Any

__all__ = ["CHECKSUM_DIGITS", "BlockChecksums", "checksum", "seal"]

CHECKSUM_DIGITS = 32


def checksum(data: memoryview) -> str:
    """The checksum of one block."""
    return hashlib.sha256(data).hexdigest()[:CHECKSUM_DIGITS]


def seal(key: str, checksums: str, tensor: Any) -> str:
    """The digest of a header: the key, the concatenated checksums of the blocks, and the tensor's description."""
    return hashlib.sha256(json.dumps([key, checksums, tensor], sort_keys=True).encode()).hexdigest()


class BlockChecksums:
    """Checksums of consecutive blocks of `block_bytes` bytes, for bytes that arrive in pieces of any size."""

    def __init__(self, block_bytes: int) -> None:
        self._block_bytes = block_bytes
        self._hash, self._filled = hashlib.sha256(), 0
        self._finished: list[str] = []

    def update(self, data: memoryview) -> None:
        """Add the next bytes."""
        while data:
            piece = data[: self._block_bytes - self._filled]
            self._hash.update(piece)
            self._filled += len(piece)
            data = data[len(piece) :]
            if self._filled == self._block_bytes:
                self._close_block()

    def finish(self, num_blocks: int) -> list[str]:
        """The checksums of all blocks."""
        while len(self._finished) < num_blocks:  # the last one is shorter; if rows are empty, all are
            self._close_block()
        return self._finished

    def _close_block(self) -> None:
        self._finished.append(self._hash.hexdigest()[:CHECKSUM_DIGITS])
        self._hash, self._filled = hashlib.sha256(), 0
