"""Reads published tables of questions row by row: JSON, JSON lines, CSV, TSV and Parquet.

The content determines the format where the extension doesn't. JSON may be a list of rows, rows by their ids (`{"q1":
{…}}`), or a list under a name (`{"data": […]}`). Cells of CSV and TSV are text, and empty ones are omitted. Columns
with bytes, such as embedded videos, are ignored. The module is independent of the content of rows.
"""

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from longrl_files.json_text import UnfitJsonError, parse_json
from longrl_files.regular_files import open_regular, read_bounded
from longvideo_reason_data.errors import DataError, UsageError
from longvideo_reason_data.parquet_rows import read_parquet_rows
from longvideo_reason_data.text_encodings import decode_text

Row = dict[str, Any]

MAX_TABLE_BYTES = 2**30
TABLE_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
ROW_KEY = "key"
"""Name under which a row gets its key in a JSON object, unless it has a field with that name."""


def read_rows(path: Path) -> Iterator[Row]:
    """Read the rows of a table.

    Raises:
        UsageError: When the file's extension isn't in `TABLE_SUFFIXES`.
        DataError: When it can't be read, or doesn't contain rows.
    """
    suffix = path.suffix.lower()
    if suffix not in TABLE_SUFFIXES:
        raise UsageError(f"{path}: must end in {', '.join(TABLE_SUFFIXES)}, found {suffix or 'no extension'}")
    if suffix == ".parquet":
        rows: Iterator[object] = _parquet_rows(path)
    elif suffix in (".csv", ".tsv"):
        rows = _delimited_rows(path, _read_text(path))
    else:
        rows = iter(_json_rows(path, _read_text(path)))
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise DataError(f"{path}: item {number} is {type(row).__name__}, expected an object with a question")
        yield cast(Row, row)


def _read_text(path: Path) -> str:
    try:
        text, guessed = decode_text(read_bounded(path, error=DataError, max_bytes=MAX_TABLE_BYTES))
    except UnicodeError as error:
        raise DataError(f"{path}: not readable as text ({error})") from error
    if guessed:
        raise DataError(f"{path}: isn't UTF-8 (it may be {guessed}); save it as UTF-8")
    return text


def _json_rows(path: Path, text: str) -> list[object]:
    try:
        try:
            content = parse_json(text, replaces_half_letters=True)
        except UnfitJsonError:
            return [parse_json(line, replaces_half_letters=True) for line in text.split("\n") if line.strip()]
    except UnfitJsonError as error:
        raise DataError(f"{path}: not readable as JSON or JSON lines ({error})") from error
    if isinstance(content, list):
        return cast(list[object], content)
    if not isinstance(content, dict):
        raise DataError(f"{path}: contains {type(content).__name__}, expected a list of rows")
    table = cast(dict[str, object], content)
    if path.suffix.lower() != ".json":
        return [table]  # a file of one line
    if table and all(isinstance(row, dict) for row in table.values()):
        return [{ROW_KEY: key, **cast(Row, row)} for key, row in table.items()]
    lists = [cast(list[object], value) for value in table.values() if isinstance(value, list)]
    # In addition to rows such a file has a version or a licence; a single row has other text and hardly lists of rows.
    of_rows = [rows for rows in lists if rows and all(isinstance(row, dict) for row in rows)]
    return of_rows[0] if len(of_rows) == 1 else [table]


def _delimited_rows(path: Path, text: str) -> Iterator[Row]:
    head = text.lstrip("\n").split("\n", 1)[0]
    delimiter = "\t" if path.suffix.lower() == ".tsv" else max(",;\t", key=head.count)
    try:
        for row in csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True):
            if None in row:
                raise DataError(f"{path}: a row has more cells than the {len(row) - 1} names in the first line")
            yield {name.strip(): value for name, value in row.items() if value}
    except csv.Error as error:
        raise DataError(f"{path}: not readable as a table ({error})") from error


def _parquet_rows(path: Path) -> Iterator[Row]:
    file = open_regular(path, error=DataError)
    return read_parquet_rows(file, path, with_bytes=False)
