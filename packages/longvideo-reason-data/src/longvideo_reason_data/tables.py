"""Tables of questions as others publish them: JSON, JSON lines, CSV, TSV and Parquet, read row by row.

What a file is shows in its content where the ending doesn't say it. JSON may be a list of rows, rows by their ids
(`{"q1": {…}}`), or a list under a name (`{"data": […]}`). Cells of CSV and TSV are texts, and empty ones aren't there.
Columns with bytes, as of embedded videos, are passed over. Nothing here knows what is in a row.
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
"""Under this name a row has the id by which it stands in a JSON object, unless it has a field of that name."""


def read_rows(path: Path) -> Iterator[Row]:
    """Read the rows of a table.

    Raises:
        UsageError: When the file ends in none of `TABLE_SUFFIXES`.
        DataError: When it can't be read, or holds something else than rows.
    """
    suffix = path.suffix.lower()
    if suffix not in TABLE_SUFFIXES:
        raise UsageError(f"{path}: has to end in {', '.join(TABLE_SUFFIXES)}, found {suffix or 'no ending'}")
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
            content = parse_json(text)
        except UnfitJsonError:
            return [parse_json(line) for line in text.split("\n") if line.strip()]
    except UnfitJsonError as error:
        raise DataError(f"{path}: not readable as JSON or JSON lines ({error})") from error
    if isinstance(content, list):
        return cast(list[object], content)
    if not isinstance(content, dict):
        raise DataError(f"{path}: holds {type(content).__name__}, expected a list of rows")
    table = cast(dict[str, object], content)
    if path.suffix.lower() != ".json":
        return [table]  # a file of one line
    if table and all(isinstance(row, dict) for row in table.values()):
        return [{ROW_KEY: key, **cast(Row, row)} for key, row in table.items()]
    lists = [cast(list[object], value) for value in table.values() if isinstance(value, list)]
    # Beside its rows such a file has a version or a licence; a row by itself has other texts and hardly lists of rows.
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
