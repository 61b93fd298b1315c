"""Evaluation sets in files, such as Video-MME, to be kept out of training data.

A file is any table of `longvideo_reason_data.tables` with a row per question, or per video with its questions inside.
Questions are read as in `longvideo_reason_data.benchmarks.rows`, but from any table: known field names are those of
Video-MME, LongVideoBench, LongVideo-Reason, MLVU, LVBench, CG-Bench, EgoSchema, NExT-QA, PerceptionTest, VRBench and
this package's own records, of any version; other fields are ignored, but a file without any question is refused. A row
may name a video by its id, or videos and images by paths relative to the file; with a path, footage can be recognised
too.
"""

import re
from pathlib import Path
from typing import Annotated, cast

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from longvideo_reason_data.benchmarks.rows import QUESTION_FIELDS, questions_of, words_of
from longvideo_reason_data.errors import DataError, UsageError
from longvideo_reason_data.records.record import describe_invalid
from longvideo_reason_data.tables import TABLE_SUFFIXES, Row, read_rows

_OPTIONS = "options"
_IDS = ("source_id", "videoID", "video_id", "youtube_id", "video_uid", "q_uid", "video_idx", "vid", "key")
_PATHS = ("video_path", "video", "videos", "video_name", "path", "images", "image", "media")
_LETTER = re.compile(r"^\s*\(?[A-J][).:]\s+")
_KNOWN = frozenset({*QUESTION_FIELDS, _OPTIONS, *_IDS, *_PATHS})
_NAMES = {name.capitalize(): name for name in (*QUESTION_FIELDS, *_PATHS, _OPTIONS, "candidates", "choices")}


class EvaluationItem(BaseModel):
    """One question of an evaluation set.

    Attributes:
        question: Its text.
        options: Its options, if it has any.
        source_id: The id of its video in the source.
        paths: Paths of its videos and images relative to the file, if given.
    """

    model_config = ConfigDict(extra="ignore", frozen=True, coerce_numbers_to_str=True)

    question: Annotated[str | None, Field(validation_alias=AliasChoices(*QUESTION_FIELDS))] = None
    options: tuple[str, ...] | None = None
    source_id: Annotated[str | None, Field(validation_alias=AliasChoices(*_IDS))] = None
    paths: tuple[str, ...] = ()

    @field_validator("options")
    @classmethod
    def _without_letters(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        """Remove letters that are in no order, which leaves the text to compare."""
        return value and tuple(_LETTER.sub("", option) for option in value)

    @model_validator(mode="before")
    @classmethod
    def _with_paths(cls, row: object) -> object:
        """Collect the paths, whether given as one path, as a list, or as the media of a record."""
        if not isinstance(row, dict):
            return row
        known = cast(dict[str, object], row)
        return known | {"paths": [path for name in _PATHS for path in _paths_in(known.get(name))]}


class EvaluationSet(BaseModel):
    """An evaluation set and the folder where its videos may be."""

    model_config = ConfigDict(frozen=True)

    name: str
    folder: Path
    items: tuple[EvaluationItem, ...]

    @property
    def summary(self) -> str:
        """Description of what it offers for comparison."""
        num_questions = sum(bool(item.question) for item in self.items)
        num_videos = len({item.source_id or item.paths for item in self.items} - {None, ()})
        return f"{num_questions} questions about {num_videos} named videos"

    def find_media(self, item: EvaluationItem) -> list[Path]:
        """Return the files of an item's media that exist inside the evaluation set's folder."""
        folder = self.folder.resolve()
        paths = [(folder / name).resolve() for name in item.paths if "\0" not in name]
        return [path for path in paths if path.is_relative_to(folder) and path.is_file()]


def _paths_in(value: object) -> list[str]:
    """The paths in a field; embedded data is ignored."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list):
        return [path for item in cast(list[object], value) for path in _paths_in(item)]
    medium = cast(dict[str, object], value) if isinstance(value, dict) else {}
    return _paths_in(medium.get("path")) if "digest" in medium else []


def read_evaluation_set(path: Path) -> EvaluationSet:
    """Read an evaluation set.

    Args:
        path: A table of questions; its name without the extension is that of the evaluation set.

    Raises:
        UsageError: When it doesn't exist or has another extension, or its rows lack questions.
        DataError: When it can't be read or a row has another format.
    """
    if not path.is_file():
        raise UsageError(f"{path}: no such file; --benchmarks expects {', '.join(TABLE_SUFFIXES)}")
    items: list[EvaluationItem] = []
    others: set[str] = set()
    for number, row in enumerate(read_rows(path), start=1):
        for question in questions_of(_renamed(row)):
            try:
                items.append(EvaluationItem.model_validate(_with_words(question)))
            except ValidationError as error:
                raise DataError(f"{path}: row {number}: {describe_invalid(error)}") from error
            others |= question.keys() - _KNOWN
    # A list of videos needs no questions; all other files have them under an unknown name.
    is_list_of_videos = not others and any(item.source_id or item.paths for item in items)
    if not is_list_of_videos and not any(item.question for item in items):
        found = f", found {', '.join(sorted(others)[:8])}" if others else ""
        expected = ", ".join(QUESTION_FIELDS)
        raise UsageError(f"{path}: 0 questions compared, no row with a question; expected a field {expected}{found}")
    return EvaluationSet(name=path.stem, folder=path.parent, items=tuple(items))


def _renamed(row: Row) -> Row:
    """A row in which names with a capital are those in small letters, as some programs write them."""
    return {_NAMES.get(name, name): value for name, value in row.items()}


def _with_words(row: Row) -> Row:
    """Put the question and the options of a row under one name each, wherever they are."""
    question, options = words_of(row)
    return {**row, **({} if question is None else {QUESTION_FIELDS[0]: question}), _OPTIONS: options or None}
