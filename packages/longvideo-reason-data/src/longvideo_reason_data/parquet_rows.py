"""Rows of Parquet files from outside, a few hundred in memory at a time, so that memory doesn't grow with the file.

A file of kilobytes can hold gigabytes, since Parquet is compressed; so a group of rows says how large it is before it
is unpacked, and a group that is too large is refused. What a row means is its reader's business.
"""

import bisect
import itertools
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

from longrl_files.messages import visible
from longvideo_reason_data.errors import DataError

ParquetRow: TypeAlias = dict[str, Any]

ROWS_PER_GROUP = 1000
"""As many rows are written together."""
MAX_GROUP_BYTES = 512 * 2**20
"""Most bytes that a group of rows may have when it is unpacked, in the columns that are read."""
MAX_TABLE_BYTES = 4 * 2**30
"""Most bytes that a table may have when it is unpacked as a whole."""

_ROWS_AT_ONCE = 128  # a long text that many rows repeat is compressed to one


def read_parquet_rows(file: BinaryIO, path: Path, *, with_bytes: bool = True) -> Iterator[ParquetRow]:
    """Read the rows of an open file, one after the other; the file is closed at the end.

    Args:
        file: Opened to be read.
        path: Its name, for messages.
        with_bytes: Whether columns with bytes, as of embedded videos, are read too.

    Raises:
        DataError: It isn't readable as Parquet, holds text that isn't UTF-8, or is too large.
    """
    with _refuse_damaged(path), file, pq.ParquetFile(file) as parquet:
        wanted = [field.name for field in parquet.schema_arrow if with_bytes or not _holds_bytes(field.type)]
        _refuse_large(parquet.metadata, set(wanted), path)
        yield from _rows_of(parquet, wanted)


def read_parquet_in_order(file: BinaryIO, path: Path, name: str) -> Iterator[tuple[int, ParquetRow]]:
    """Read the rows of an open file with their numbers, in the order of a column of texts; the file is closed.

    Where that isn't the order of the file, the whole file is in memory, unpacked.

    Raises:
        DataError: It isn't readable as Parquet, has no such column, holds text that isn't UTF-8, or is too large.
    """
    with _refuse_damaged(path), file, pq.ParquetFile(file) as parquet:
        columns = parquet.schema_arrow.names
        if name not in columns:
            raise DataError(f"{path}: has no column {name!r}")
        num_bytes = _refuse_large(parquet.metadata, set(columns), path)
        ids = [str(found) for found in parquet.read(columns=[name])[name].to_pylist()]
        order = sorted(range(len(ids)), key=ids.__getitem__)
        if order == list(range(len(ids))):
            yield from enumerate(_rows_of(parquet, columns))
            return
        if num_bytes > MAX_TABLE_BYTES:
            raise DataError(f"{path}: {num_bytes:,} bytes, expected at most {MAX_TABLE_BYTES:,}; sort it by {name}")
        batches = parquet.read().to_batches(max_chunksize=_ROWS_AT_ONCE)
        starts = list(itertools.accumulate((batch.num_rows for batch in batches), initial=0))
        for number in order:
            place = bisect.bisect_right(starts, number) - 1
            yield number, batches[place].slice(number - starts[place], 1).to_pylist()[0]


class ParquetRows:
    """Rows of an open file by their numbers, in any order; the group of rows read last stays in memory, unpacked.

    Args:
        file: Opened to be read; it stays open, and so the same, until `close`.
        path: Its name, for messages.

    Raises:
        DataError: It isn't readable as Parquet, or is too large.
    """

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file, self._path = file, path
        with _refuse_damaged(path):
            self._parquet = pq.ParquetFile(file)
        metadata = self._parquet.metadata
        _refuse_large(metadata, set(self._parquet.schema_arrow.names), path)
        groups = range(metadata.num_row_groups)
        self._starts = list(itertools.accumulate((metadata.row_group(group).num_rows for group in groups), initial=0))
        self._read: tuple[int, pa.Table] | None = None

    def read(self, number: int) -> ParquetRow:
        """Read one row, counted from 0.

        Raises:
            DataError: There is no such row, it is damaged, or holds text that isn't UTF-8.
        """
        if not 0 <= number < self._starts[-1]:
            raise DataError(f"{self._path}: row {number} was asked for, and it has {self._starts[-1]}")
        group = bisect.bisect_right(self._starts, number) - 1
        with _refuse_damaged(self._path):
            if self._read is None or self._read[0] != group:
                self._read = group, self._parquet.read_row_group(group)
            return self._read[1].slice(number - self._starts[group], 1).to_pylist()[0]

    def close(self) -> None:
        """Close the file."""
        self._parquet.close()
        self._file.close()


def read_parquet_metadata(file: BinaryIO, path: Path) -> dict[bytes, bytes]:
    """Read what a file says of itself, without its rows; the file is closed.

    Raises:
        DataError: It isn't readable as Parquet.
    """
    with _refuse_damaged(path), file:
        return dict(pq.read_schema(file).metadata or {})


def count_parquet_rows(file: BinaryIO, path: Path) -> int:
    """See how many rows a file has, without reading them; the file is closed.

    Raises:
        DataError: It isn't readable as Parquet.
    """
    with _refuse_damaged(path), file:
        return pq.read_metadata(file).num_rows


def _rows_of(parquet: pq.ParquetFile, columns: list[str]) -> Iterator[ParquetRow]:
    for batch in parquet.iter_batches(batch_size=_ROWS_AT_ONCE, columns=columns):
        yield from batch.to_pylist()


@contextmanager
def _refuse_damaged(path: Path) -> Generator[None]:
    try:
        yield
    # Text that isn't UTF-8 is a ValueError, and so are most errors of pyarrow.
    except (OSError, ValueError, pa.ArrowException) as error:
        reason = (str(error).splitlines() or ["unreadable"])[0]
        raise DataError(f"{path}: not a readable Parquet file ({visible(reason)})") from error


def _refuse_large(metadata: pq.FileMetaData, wanted: set[str], path: Path) -> int:
    """Refuse a group of rows that is too large to be unpacked; returns the size of all together."""
    sizes = [0]
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        columns = (group.column(place) for place in range(group.num_columns))
        sizes.append(sum(c.total_uncompressed_size for c in columns if c.path_in_schema.split(".")[0] in wanted))
    if max(sizes) > MAX_GROUP_BYTES:
        raise DataError(
            f"{path}: {max(sizes):,} bytes in one group of rows, expected at most {MAX_GROUP_BYTES:,}; write the file "
            "again in smaller groups"
        )
    return sum(sizes)


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return True
    return any(_holds_bytes(kind.field(place).type) for place in range(kind.num_fields))
