"""Benchmarks given as files, to be kept out of training data.

A file is any table of `longvideo_reason_data.tables` with a row per question, or per video with its questions
in a list. Known names of fields are those of Video-MME, LongVideoBench, LongVideo-Reason, MLVU, LVBench, CG-Bench,
EgoSchema, NExT-QA, PerceptionTest and this package's own records, of any version; everything else in a row is passed
over, but a file in which no question is found is refused. A row may name a video by its id, or videos and pictures by
paths beside the file; from a path footage can be recognised too.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, cast

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from longvideo_reason_data.errors import DataError, UsageError
from longvideo_reason_data.records.options import read_options, split_options
from longvideo_reason_data.records.record import describe_invalid
from longvideo_reason_data.tables import TABLE_SUFFIXES, Row, read_rows

_QUESTIONS = ("question", "problem", "query")
_OPTIONS = "options"
_IDS = ("source_id", "videoID", "video_id", "youtube_id", "video_uid", "q_uid", "video_idx", "vid", "key")
_PATHS = ("video_path", "video", "videos", "video_name", "path", "images", "image", "media")
_LISTS = ("qa", "qas", "qa_pairs", "questions", "mc_question")  # of the questions about a video
_LETTER = re.compile(r"^\s*\(?[A-J][).:]\s+")
_KNOWN = frozenset({*_QUESTIONS, _OPTIONS, *_IDS, *_PATHS})
_NAMES = {name.capitalize(): name for name in (*_QUESTIONS, *_PATHS, _OPTIONS, "candidates", "choices")}


class BenchmarkItem(BaseModel):
    """One question of a benchmark.

    Attributes:
        question: Its words.
        options: Its options, if it has any.
        source_id: Which video it is about, as its source calls it.
        paths: Where its videos and pictures are beside the file, if they are there.
    """

    model_config = ConfigDict(extra="ignore", frozen=True, coerce_numbers_to_str=True)

    question: Annotated[str | None, Field(validation_alias=AliasChoices(*_QUESTIONS))] = None
    options: tuple[str, ...] | None = None
    source_id: Annotated[str | None, Field(validation_alias=AliasChoices(*_IDS))] = None
    paths: tuple[str, ...] = ()

    @field_validator("options")
    @classmethod
    def _without_letters(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        """Take letters off that stand in no order, which leaves the words to compare."""
        return value and tuple(_LETTER.sub("", option) for option in value)

    @model_validator(mode="before")
    @classmethod
    def _with_paths(cls, row: object) -> object:
        """Gather the paths, whether they stand alone, in a list, or in the media of a record."""
        if not isinstance(row, dict):
            return row
        known = cast(dict[str, object], row)
        return known | {"paths": [path for name in _PATHS for path in _paths_in(known.get(name))]}


class Benchmark(BaseModel):
    """A benchmark and the folder in which its videos may lie."""

    model_config = ConfigDict(frozen=True)

    name: str
    folder: Path
    items: tuple[BenchmarkItem, ...]

    @property
    def summary(self) -> str:
        """What it has to be compared, in words."""
        num_questions = sum(bool(item.question) for item in self.items)
        num_videos = len({item.source_id or item.paths for item in self.items} - {None, ()})
        return f"{num_questions} questions about {num_videos} named videos"

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
        path: A table of questions; its name without the ending is the benchmark's.

    Raises:
        UsageError: When it isn't there or ends otherwise, or its rows have no questions where there should be some.
        DataError: When it can't be read or a row has another form.
    """
    if not path.is_file():
        raise UsageError(f"{path}: no such file; --benchmarks expects {', '.join(TABLE_SUFFIXES)}")
    items: list[BenchmarkItem] = []
    others: set[str] = set()
    for number, row in enumerate(read_rows(path), start=1):
        for question in _questions_of(row):
            try:
                items.append(BenchmarkItem.model_validate(_with_options(question)))
            except ValidationError as error:
                raise DataError(f"{path}: row {number}: {describe_invalid(error)}") from error
            others |= question.keys() - _KNOWN
    # A list of videos has no questions and needs none; all others have them under a name that isn't known.
    is_list_of_videos = not others and any(item.source_id or item.paths for item in items)
    if not is_list_of_videos and not any(item.question for item in items):
        found = f", found {', '.join(sorted(others)[:8])}" if others else ""
        raise UsageError(
            f"{path}: 0 questions compared, no row with a question; expected a field {', '.join(_QUESTIONS)}{found}"
        )
    return Benchmark(name=path.stem, folder=path.parent, items=tuple(items))


def _questions_of(row: Row) -> Iterator[Row]:
    """Give the questions of a row: itself, or those that are listed in it, each with what is said of all."""
    row = {_NAMES.get(name, name): value for name, value in row.items()}
    nested = next((value for name in _LISTS if _is_rows(value := row.get(name))), None)
    if nested is None or any(row.get(name) for name in _QUESTIONS):
        yield row
        return
    shared = {name: value for name, value in row.items() if name not in _LISTS}
    for question in cast(list[Row], nested):
        yield {**shared, **question}


def _is_rows(value: object) -> bool:
    rows = cast(list[object], value) if isinstance(value, list) else []
    return bool(rows) and all(isinstance(item, dict) for item in rows)


def _with_options(row: Row) -> Row:
    """Bring the options of a row under one name, whether they stand in fields or behind the question."""
    question = next((value for name in _QUESTIONS if isinstance(value := row.get(name), str) and value), None)
    options = read_options(row)
    if question is not None:
        bare, behind = split_options(question)
        # As options of their own, or standing there once more.
        if behind and options in ((), behind):
            return {**row, _QUESTIONS[0]: bare, _OPTIONS: behind}
    return {**row, _OPTIONS: options or None}
