"""Rows of a Parquet file, one after the other, so that the memory of a reader doesn't grow with the file."""

import bisect
import itertools
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from longvideo_reason_data.errors import DataError

ROWS_AT_ONCE = 1000


def count_rows(path: Path) -> int:
    """See how many rows a file has, without reading them.

    Raises:
        DataError: When the file is damaged.
    """
    with told_if_damaged(path):
        return pq.read_metadata(path).num_rows


def rows_of(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Read the rows of a file with their numbers, a thousand at a time.

    Raises:
        DataError: When the file is damaged.
    """
    with told_if_damaged(path), pq.ParquetFile(path) as file:
        number = 0
        for batch in file.iter_batches(batch_size=ROWS_AT_ONCE):
            rows: list[dict[str, Any]] = batch.to_pylist()
            yield from enumerate(rows, start=number)
            number += len(rows)


def rows_in_order(path: Path, name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Read the rows of a file with their numbers in the order of a column of texts.

    Where that isn't the order of the file, the whole file is in memory, unpacked.

    Raises:
        DataError: When the file is damaged.
    """
    with told_if_damaged(path):
        ids = [str(found) for found in pq.read_table(path, columns=[name])[name].to_pylist()]
        order = sorted(range(len(ids)), key=ids.__getitem__)
        if order == list(range(len(ids))):
            yield from rows_of(path)
            return
        batches = pq.read_table(path).to_batches(max_chunksize=ROWS_AT_ONCE)
        starts = list(itertools.accumulate((batch.num_rows for batch in batches), initial=0))
        for number in order:
            place = bisect.bisect_right(starts, number) - 1
            yield number, batches[place].slice(number - starts[place], 1).to_pylist()[0]


@contextmanager
def told_if_damaged(path: Path) -> Generator[None]:
    """Say in one line that a file can't be read.

    Raises:
        DataError: When it can't.
    """
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        first_line = (str(error).splitlines() or ["unreadable"])[0]
        raise DataError(f"{path}: not a readable Parquet file ({first_line})") from error
