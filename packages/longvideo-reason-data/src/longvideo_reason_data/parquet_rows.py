"""Rows of Parquet files from outside, a few hundred in memory at a time.

A file of kilobytes can hold gigabytes, since Parquet is compressed; so a group of rows says how large it is before it
is unpacked, and a group that is too large is refused. What a row means is its reader's business.
"""

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

from longrl_files.messages import visible
from longvideo_reason_data.errors import DataError

ParquetRow: TypeAlias = dict[str, Any]

MAX_GROUP_BYTES = 512 * 2**20
"""Most bytes that a group of rows may have when it is unpacked, in the columns that are read."""

_ROWS_AT_ONCE = 256


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
        for batch in parquet.iter_batches(batch_size=_ROWS_AT_ONCE, columns=wanted):
            yield from batch.to_pylist()


def read_parquet_metadata(file: BinaryIO, path: Path) -> dict[bytes, bytes]:
    """Read what a file says of itself, without its rows; the file is closed.

    Raises:
        DataError: It isn't readable as Parquet.
    """
    with _refuse_damaged(path), file:
        return dict(pq.read_schema(file).metadata or {})


@contextmanager
def _refuse_damaged(path: Path) -> Generator[None]:
    try:
        yield
    # Text that isn't UTF-8 is a ValueError, and so are most errors of pyarrow.
    except (OSError, ValueError, pa.ArrowException) as error:
        reason = (str(error).splitlines() or ["unreadable"])[0]
        raise DataError(f"{path}: not a readable Parquet file ({visible(reason)})") from error


def _refuse_large(metadata: pq.FileMetaData, wanted: set[str], path: Path) -> None:
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        columns = (group.column(place) for place in range(group.num_columns))
        num_bytes = sum(
            column.total_uncompressed_size for column in columns if column.path_in_schema.split(".")[0] in wanted
        )
        if num_bytes > MAX_GROUP_BYTES:
            raise DataError(
                f"{path}: {num_bytes:,} bytes in one group of rows, expected at most {MAX_GROUP_BYTES:,}; write the "
                "file again in smaller groups"
            )


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return True
    return any(_holds_bytes(kind.field(place).type) for place in range(kind.num_fields))
