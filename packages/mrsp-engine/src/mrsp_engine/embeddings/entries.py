"""One embedding in one safetensors file, sealed so that any part of it can be read alone and trusted.

The numbers are cut into blocks of whole rows, about a mebibyte each. The file's metadata holds the key, the checksum
of every block and a seal over all that, so a reader of some rows reads and checks the header and the blocks that hold
those rows, nothing else. Rows are read into memory of the reader's own and checked there: what is returned can't
change or vanish when the file does. Whole entries can also be mapped, which costs no memory and gives that up.

The module knows files; which of them exist, `mrsp_engine.embeddings.disk` knows.

Shape legend: N rows.
"""

import errno
import hashlib
import math
import os
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from longrl_files.json_text import parse_json
from mrsp_engine.embeddings.checksums import CHECKSUM_DIGITS, BlockChecksums, checksum, seal
from mrsp_engine.embeddings.entry_layout import BLOCK_BYTES, DTYPE_NAMES, TENSOR_NAME, EntryLayout, layout_of
from mrsp_engine.embeddings.key import tensor_bytes
from mrsp_engine.errors import EngineError

__all__ = [
    "DamagedEntryError",
    "DiskRefusedError",
    "Entry",
    "Identity",
    "identity_of",
    "refusals",
    "write_entry",
]

LONGEST_HEADER_BYTES = 16 * 2**20
"""More than half a million blocks; the format would allow a hundred million bytes."""
LARGEST_EXTENT = 2**40

Identity = tuple[int, int, int]
"""Inode, size and time of change of a file."""


class DamagedEntryError(Exception):
    """A file of the store isn't what its name says."""


class DiskRefusedError(Exception):
    """The disk takes no more; the message says why."""


@contextmanager
def refusals() -> Generator[None]:
    """Turn what the system says about a disk into a `DiskRefusedError`."""
    try:
        yield
    except OSError as error:
        raise DiskRefusedError(error.strerror or str(error)) from error


def write_entry(file: BinaryIO, key: str, num_rows: int, chunks: Iterable[Tensor], most_bytes: int | None) -> None:
    """Write an entry piece by piece, so that it never has to be in memory as a whole.

    Args:
        file: Empty, open for writing.
        key: What the entry depends on, as canonical JSON.
        num_rows: Rows of all chunks together.
        chunks: The rows in order, [n, …] each.
        most_bytes: How large the file may become; None for any size.

    Raises:
        EngineError: If numbers aren't finite, or the chunks aren't one tensor of `num_rows` rows.
        DiskRefusedError: For lack of space, as a rule before the second chunk is asked for.
    """
    name = hashlib.sha256(key.encode()).hexdigest()[:12]
    layout: EntryLayout | None = None
    checksums = BlockChecksums(BLOCK_BYTES)
    num_written = 0
    for chunk in chunks:
        if not bool(torch.isfinite(chunk).all()):
            raise EngineError(f"embedding {name}…: not all numbers are finite; check the encoder's dtype")
        if layout is None:
            layout = layout_of(chunk, num_rows, name)
            checksums = BlockChecksums(layout.block_rows * layout.row_bytes)
            header_bytes = len(layout.header(key, ["0" * CHECKSUM_DIGITS] * layout.num_blocks))
            with refusals():
                _reserve(file, header_bytes + num_rows * layout.row_bytes, most_bytes)
                file.seek(header_bytes)
        if (chunk.dtype, chunk.shape[1:]) != (layout.dtype, layout.shape[1:]):
            raise EngineError(f"embedding {name}…: the encoder changed its number format or width halfway")
        num_written += chunk.shape[0]
        if num_written > num_rows:
            break
        data = tensor_bytes(chunk)
        checksums.update(data)
        with refusals():
            file.write(data)
    if layout is None or num_written != num_rows:
        raise EngineError(f"embedding {name}…: the encoder made {num_written} rows, expected {num_rows}")
    with refusals():
        file.seek(0)
        file.write(layout.header(key, checksums.finish(layout.num_blocks)))
        file.flush()
        os.fsync(file.fileno())


class Entry:
    """An entry open for reading.

    Args:
        file: The file, open, nothing of it read yet.

    Attributes:
        key: What the entry depends on, as canonical JSON.
        layout: Number format and shape.
        identity: Which state of which file this is.
        bytes_read: Bytes read so far.

    Raises:
        DamagedEntryError: The file is no whole entry, or its header was changed.
    """

    def __init__(self, file: BinaryIO) -> None:
        # Without the buffer, so that what is counted as read was read.
        self._file = cast(FileIO, getattr(file, "raw", file))
        self.bytes_read = 0
        self._read_header()

    def _read_header(self) -> None:
        status = os.fstat(self._file.fileno())
        self.identity, size = identity_of(status), status.st_size
        num_bytes = int.from_bytes(self._read(8), "little")
        if num_bytes > min(size, LONGEST_HEADER_BYTES):
            raise DamagedEntryError("no header")
        try:
            header: Any = parse_json(self._read(num_bytes))
            metadata, tensor = cast(dict[str, Any], header["__metadata__"]), header[TENSOR_NAME]
            key, blocks, shape = metadata["key"], metadata["blocks"], cast(list[Any], tensor["shape"])
            if metadata["seal"] != seal(key, blocks, tensor):
                raise DamagedEntryError("the header was changed")
            dtype = next(dtype for dtype, name in DTYPE_NAMES.items() if name == tensor["dtype"])
        except (ValueError, KeyError, TypeError, StopIteration, RecursionError) as error:
            raise DamagedEntryError("the header can't be read") from error
        if not (isinstance(key, str) and isinstance(blocks, str) and _is_shape(shape)):
            raise DamagedEntryError("the header can't be read")
        self.key = key
        self.layout = EntryLayout(dtype=dtype, shape=tuple(shape))
        self._checksums = [blocks[at : at + CHECKSUM_DIGITS] for at in range(0, len(blocks), CHECKSUM_DIGITS)]
        if len(self._checksums) != self.layout.num_blocks:
            raise DamagedEntryError("the header names another number of blocks than the rows have")
        self._start = 8 + num_bytes
        if size != self._start + self.layout.num_rows * self.layout.row_bytes:
            raise DamagedEntryError("the file is cut short")

    def blocks(self, start: int, stop: int) -> Iterator[tuple[int, Tensor]]:
        """Read and check the blocks that hold rows `start` to `stop`, one at a time.

        Yields:
            The number of a block's first row, and its rows, in memory of the caller's own.

        Raises:
            DamagedEntryError: A block isn't what was written.
        """
        layout = self.layout
        for block in range(start // layout.block_rows, -(-stop // layout.block_rows)):
            first = block * layout.block_rows
            rows = torch.empty((min(layout.block_rows, layout.num_rows - first), *layout.shape[1:]), dtype=layout.dtype)
            data = tensor_bytes(rows)
            self._file.seek(self._start + first * layout.row_bytes)
            self._read_into(data)
            if checksum(data) != self._checksums[block]:
                raise DamagedEntryError(f"block {block} was changed")
            yield first, rows

    def read(self, start: int, stop: int) -> Tensor:
        """Rows `start` to `stop`, [stop - start, …], in memory of the caller's own.

        Raises:
            DamagedEntryError: A block that holds some of them isn't what was written.
        """
        result = torch.empty((stop - start, *self.layout.shape[1:]), dtype=self.layout.dtype)
        for first, rows in self.blocks(start, stop) if stop > start else ():
            begin, end = max(start, first), min(stop, first + rows.shape[0])
            result[begin - start : end - start] = rows[begin - first : end - first]
        return result

    def check(self) -> None:
        """Read every block.

        Raises:
            DamagedEntryError: One isn't what was written.
        """
        for _ in self.blocks(0, self.layout.num_rows):
            pass

    def map(self, path: Path) -> Tensor:
        """All rows, mapped: they take no memory of the process and must not be written to.

        They are checked now. Should somebody change the file in place later, the tensor changes with it; the store
        itself never does that.

        Raises:
            DamagedEntryError: They aren't what was written.
        """
        try:
            with safe_open(path, framework="pt") as file:
                rows = cast(Tensor, file.get_tensor(TENSOR_NAME))
        except (SafetensorError, OSError, ValueError) as error:
            raise DamagedEntryError(str(error)) from error
        checksums = BlockChecksums(self.layout.block_rows * self.layout.row_bytes)
        checksums.update(tensor_bytes(rows))
        if checksums.finish(self.layout.num_blocks) != self._checksums:
            raise DamagedEntryError("a block was changed")
        self.bytes_read += rows.nbytes
        return rows

    def _read(self, num_bytes: int) -> bytes:
        data = bytearray(num_bytes)
        self._read_into(memoryview(data))
        return bytes(data)

    def _read_into(self, data: memoryview) -> None:
        while data:
            try:
                num_read = self._file.readinto(data)
            except OSError as error:
                raise DamagedEntryError(error.strerror or str(error)) from error
            if not num_read:
                raise DamagedEntryError("the file is cut short")
            self.bytes_read += num_read
            data = data[num_read:]


def _is_shape(shape: object) -> bool:
    """Whether these are extents of a tensor that torch can make, one at least."""
    extents = cast(list[object], shape) if isinstance(shape, list) else []
    are_whole = all(type(extent) is int and 0 <= extent < LARGEST_EXTENT for extent in extents)
    return bool(extents) and are_whole and math.prod(max(1, cast(int, extent)) for extent in extents) < 2**56


def identity_of(status: os.stat_result) -> Identity:
    """Which state of which file this is."""
    return status.st_ino, status.st_size, status.st_mtime_ns


def _reserve(file: BinaryIO, num_bytes: int, most_bytes: int | None) -> None:
    """Claim the space now, so that a full disk shows before the work and not behind it."""
    if most_bytes is not None and num_bytes > most_bytes:
        raise OSError(errno.EFBIG, f"an entry of {num_bytes} bytes is larger than the budget of {most_bytes}")
    os.posix_fallocate(file.fileno(), 0, num_bytes)
