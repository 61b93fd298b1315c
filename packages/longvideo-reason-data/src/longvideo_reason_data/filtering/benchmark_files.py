"""Benchmarks given as files, to be kept out of training data.

A file is JSON lines or Parquet with one row per question. Known names of fields are those of Video-MME, LongVideoBench,
MLVU, LVBench and this package's own records, of any version; everything else in a row is passed over. A row may name a
video by its id, or videos and pictures by paths beside the file; from a path footage can be recognised too.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from longvideo_reason_data.errors import DataError, UsageError
from longvideo_reason_data.records.record import describe_invalid

_QUESTION_NAMES = AliasChoices("question", "problem", "query")
_OPTIONS_NAMES = AliasChoices("options", "candidates", "choices")
_ID_NAMES = AliasChoices("source_id", "videoID", "video_id", "youtube_id", "vid", "key")
_PATH_NAMES = ("video_path", "video", "path", "videos", "images", "image", "media")
_LETTER = re.compile(r"^\s*\(?[A-J][).:]\s+")


class BenchmarkItem(BaseModel):
    """One question of a benchmark.

    Attributes:
        question: Its words.
        options: Its options, if it has any.
        source_id: Which video it is about, as its source calls it.
        paths: Where its videos and pictures are beside the file, if they are there.
    """

    model_config = ConfigDict(extra="ignore", frozen=True, coerce_numbers_to_str=True)

    question: Annotated[str | None, Field(validation_alias=_QUESTION_NAMES)] = None
    options: Annotated[tuple[str, ...] | None, Field(validation_alias=_OPTIONS_NAMES)] = None
    source_id: Annotated[str | None, Field(validation_alias=_ID_NAMES)] = None
    paths: tuple[str, ...] = ()

    @field_validator("options", mode="before")
    @classmethod
    def _in_a_list(cls, value: object) -> object:
        """Take options that are named one by one, as `{"A": …}`, as a list."""
        if isinstance(value, dict):
            return [text for text in cast(dict[str, object], value).values() if text is not None]
        return value

    @field_validator("options")
    @classmethod
    def _without_letters(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        """Take the letter off an option such as `A. a red ball`."""
        return value and tuple(_LETTER.sub("", option) for option in value)

    @model_validator(mode="before")
    @classmethod
    def _with_paths(cls, row: object) -> object:
        """Gather the paths, whether they stand alone, in a list, or in the media of a record."""
        if not isinstance(row, dict):
            return row
        known = cast(dict[str, object], row)
        return known | {"paths": [path for name in _PATH_NAMES for path in _paths_in(known.get(name))]}


class Benchmark(BaseModel):
    """A benchmark and the folder in which its videos may lie."""

    model_config = ConfigDict(frozen=True)

    name: str
    folder: Path
    items: tuple[BenchmarkItem, ...]

    def find_media(self, item: BenchmarkItem) -> list[Path]:
        """Return the files of an item's media that are there and don't lie outside of the benchmark's folder."""
        folder = self.folder.resolve()
        paths = [(folder / name).resolve() for name in item.paths if "\0" not in name]
        return [path for path in paths if path.is_relative_to(folder) and path.is_file()]


def _paths_in(value: object) -> list[str]:
    """The paths that a field holds; what is embedded in the file itself is passed over."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list):
        return [path for item in cast(list[object], value) for path in _paths_in(item)]
    medium = cast(dict[str, object], value) if isinstance(value, dict) else {}
    return _paths_in(medium.get("path")) if "digest" in medium else []


def read_benchmark(path: Path) -> Benchmark:
    """Read a benchmark.

    Args:
        path: A file ending in .jsonl, .json or .parquet; its name without the ending is the benchmark's.

    Raises:
        UsageError: When it isn't there or ends otherwise, or no row has a question or names a video.
        DataError: When it can't be read or a row has another form.
    """
    if not path.is_file():
        raise UsageError(f"{path}: no such file; --benchmarks expects .jsonl or .parquet files")
    rows = _READERS.get(path.suffix.lower())
    if rows is None:
        raise UsageError(f"{path}: a benchmark has to end in {', '.join(_READERS)}, found {path.suffix or 'no ending'}")
    items: list[BenchmarkItem] = []
    for number, row in rows(path):
        try:
            items.append(BenchmarkItem.model_validate(row))
        except ValidationError as error:
            raise DataError(f"{path}: row {number}: {describe_invalid(error)}") from error
    if not any(item.question or item.source_id or item.paths for item in items):
        raise UsageError(f"{path}: no row with a question or a video; expected fields such as question and source_id")
    return Benchmark(name=path.stem, folder=path.parent, items=tuple(items))


def _lines(path: Path) -> Iterator[tuple[int, Any]]:
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, json.loads(line)
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: not readable as JSON lines ({error})") from error


def _array(path: Path) -> Iterator[tuple[int, Any]]:
    try:
        content: object = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(content, list):
        raise DataError(f"{path}: expected a list of questions, found {type(content).__name__}")
    yield from enumerate(content, start=1)


def _table(path: Path) -> Iterator[tuple[int, Any]]:
    known = (*_QUESTION_NAMES.choices, *_OPTIONS_NAMES.choices, *_ID_NAMES.choices, *_PATH_NAMES)
    try:
        columns = [name for name in pq.read_schema(path).names if name in known]
        rows: list[dict[str, Any]] = pq.read_table(path, columns=columns).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: not readable as Parquet ({(str(error).splitlines() or [''])[0]})") from error
    yield from enumerate(rows, start=1)


_READERS = {".jsonl": _lines, ".json": _array, ".parquet": _table}
