"""Benchmarks given as files, to be kept out of training data.

A file is JSON lines or Parquet with one row per question. Known names of fields are those of Video-MME, LongVideoBench,
MLVU, LVBench and this package's own records; everything else in a row is passed over. A row may name a video by its id,
or by a path beside the file; from a path footage can be recognised too.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError, field_validator

from longvideo_reason_data.errors import DataError, UsageError
from longvideo_reason_data.records.record import describe_invalid

_QUESTION_NAMES = AliasChoices("question", "problem", "query")
_OPTIONS_NAMES = AliasChoices("options", "candidates", "choices")
_ID_NAMES = AliasChoices("source_id", "videoID", "video_id", "youtube_id", "vid", "key")
_PATH_NAMES = AliasChoices("video_path", "video", "path")
_LETTER = re.compile(r"^\s*\(?[A-J][).:]\s+")


class BenchmarkItem(BaseModel):
    """One question of a benchmark.

    Attributes:
        question: Its words.
        options: Its options, if it has any.
        source_id: Which video it is about, as its source calls it.
        video_path: That video's path beside the file, if it is there.
    """

    model_config = ConfigDict(extra="ignore", frozen=True, coerce_numbers_to_str=True)

    question: Annotated[str | None, Field(validation_alias=_QUESTION_NAMES)] = None
    options: Annotated[tuple[str, ...] | None, Field(validation_alias=_OPTIONS_NAMES)] = None
    source_id: Annotated[str | None, Field(validation_alias=_ID_NAMES)] = None
    video_path: Annotated[str | None, Field(validation_alias=_PATH_NAMES)] = None

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

    @field_validator("video_path", mode="before")
    @classmethod
    def _only_a_path(cls, value: object) -> object:
        """Pass over videos that are embedded in the file."""
        return value if isinstance(value, str) else None


class Benchmark(BaseModel):
    """A benchmark and the folder in which its videos may lie."""

    model_config = ConfigDict(frozen=True)

    name: str
    folder: Path
    items: tuple[BenchmarkItem, ...]

    def find_video(self, item: BenchmarkItem) -> Path | None:
        """Return the file of a video, or None when it isn't there or lies outside of the benchmark's folder."""
        if item.video_path is None or "\0" in item.video_path:
            return None
        folder = self.folder.resolve()
        path = (folder / item.video_path).resolve()
        return path if path.is_relative_to(folder) and path.is_file() else None


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
    if not any(item.question or item.source_id or item.video_path for item in items):
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
    known = (*_QUESTION_NAMES.choices, *_OPTIONS_NAMES.choices, *_ID_NAMES.choices, *_PATH_NAMES.choices)
    try:
        columns = [name for name in pq.read_schema(path).names if name in known]
        rows: list[dict[str, Any]] = pq.read_table(path, columns=columns).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: not readable as Parquet ({(str(error).splitlines() or [''])[0]})") from error
    yield from enumerate(rows, start=1)


_READERS = {".jsonl": _lines, ".json": _array, ".parquet": _table}
