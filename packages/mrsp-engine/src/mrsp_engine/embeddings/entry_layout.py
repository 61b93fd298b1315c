"""The layout of one embedding in its file: rows of one dtype, divided into blocks, after a sealed header.

Shape legend: N rows.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from mrsp_engine.embeddings.checksums import seal
from mrsp_engine.errors import EngineError

__all__ = ["BLOCK_BYTES", "DTYPE_NAMES", "TENSOR_NAME", "EntryLayout", "layout_of"]

TENSOR_NAME = "embeddings"
BLOCK_BYTES = 1 << 20
DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.uint8: "U8",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class EntryLayout:
    """Dtype and shape [N, …] of an entry, and how its rows are divided into blocks."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def num_rows(self) -> int:
        """Rows N."""
        return self.shape[0]

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return prod(self.shape[1:]) * self.dtype.itemsize

    @property
    def block_rows(self) -> int:
        """Rows of every block except the last, which may be shorter."""
        return max(1, BLOCK_BYTES // max(1, self.row_bytes))

    @property
    def num_blocks(self) -> int:
        """Number of blocks."""
        return -(-self.num_rows // self.block_rows)

    def header(self, key: str, checksums: Iterable[str]) -> bytes:
        """The header before the numbers in the file; its length depends only on layout and key."""
        checks = "".join(checksums)
        tensor = {
            "dtype": DTYPE_NAMES[self.dtype],
            "shape": list(self.shape),
            "data_offsets": [0, self.num_rows * self.row_bytes],
        }
        metadata = {"blocks": checks, "key": key, "seal": seal(key, checks, tensor)}
        text = json.dumps({"__metadata__": metadata, TENSOR_NAME: tensor}, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text


def layout_of(chunk: Tensor, num_rows: int, name: str) -> EntryLayout:
    """The layout of an entry of `num_rows` rows whose first rows are `chunk`, [n, …]; `name` is for errors.

    Raises:
        EngineError: An entry can't hold such rows.
    """
    if not chunk.ndim or chunk.dtype not in DTYPE_NAMES:
        raise EngineError(
            f"embedding {name}…: {chunk.dtype} of shape {tuple(chunk.shape)}, expected rows of one of "
            f"{', '.join(str(dtype) for dtype in DTYPE_NAMES)}"
        )
    return EntryLayout(dtype=chunk.dtype, shape=(num_rows, *chunk.shape[1:]))
