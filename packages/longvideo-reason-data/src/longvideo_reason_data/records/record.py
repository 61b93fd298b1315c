"""The question record: what the pipeline writes, the trainer reads and the evaluation uses.

One pydantic model is the only definition; the Parquet schema in `longvideo_reason_data.records.versions` mirrors it. A
file has the version of the model in its metadata; the previous version is read too, and files of any other version are
refused. Nothing here opens a medium.
"""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal, Self, cast

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from longrl_files.folders import ForeignFolder
from longrl_files.messages import visible
from longvideo_reason_data.atomic_files import atomic_path
from longvideo_reason_data.errors import DataError, UsageError
from longvideo_reason_data.parquet_rows import (
    ROWS_PER_GROUP,
    ParquetRows,
    count_parquet_rows,
    read_parquet_in_order,
    read_parquet_metadata,
    read_parquet_rows,
)
from longvideo_reason_data.question_types import QuestionType, Senses, Skill
from longvideo_reason_data.records.answers import LETTERS
from longvideo_reason_data.records.medium import MAX_TEXT_CHARACTERS, NonEmpty, RecordMedium
from longvideo_reason_data.records.pass_rates import Condition, PassRate
from longvideo_reason_data.records.versions import (
    BEFORE,
    READABLE,
    RECORDS_SCHEMA,
    SCHEMA_VERSION,
    VERSION_KEY,
    upgrade_row,
)

NUM_OPTIONS = 4

_SHOWN_CHARACTERS = 60

Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Split(StrEnum):
    """The split of a video or image; none is in two."""

    TRAIN_SFT = "train_sft"
    TRAIN_RL = "train_rl"
    HELD_OUT = "held_out"


class Demonstration(StrEnum):
    """How the author of the reasoning arrived at it."""

    WATCHED = "watched"
    GUESSED = "guessed"
    """Without watching, as the reasoning says; imitation copies this habit, reward removes it."""


class Interval(BaseModel):
    """A time range of a video, counted in seconds from its first frame; `medium` is its index in the record's media."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    start_seconds: Seconds
    end_seconds: Seconds
    medium: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.end_seconds <= self.start_seconds:
            raise ValueError(f"interval {self.start_seconds} to {self.end_seconds} must end after it starts")
        return self


class QuestionRecord(BaseModel):
    """One question about its media, with its answer, the evidence and the reasoning that leads to it.

    The media are shown in their order, before the question; the same one may be shown twice. A choice question has four
    different options and a letter as its answer; an open-ended one has no options, and free text unless `answer_type`
    says otherwise. `senses` say whether it needs the pictures of a film, its sound or both, if that is known.
    `pass_rates` record how models answered it, if measured; at most one per condition.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[3] = SCHEMA_VERSION
    question_id: NonEmpty
    media: Annotated[tuple[RecordMedium, ...], Field(min_length=1)]
    split: Split
    skill: Skill
    question: NonEmpty
    options: tuple[NonEmpty, ...]
    answer: NonEmpty
    answer_type: QuestionType | None = None
    senses: Senses | None = None
    evidence: tuple[Interval, ...]
    reasoning: Annotated[str, StringConstraints(max_length=MAX_TEXT_CHARACTERS)]
    demonstration: Demonstration = Demonstration.WATCHED
    source: NonEmpty
    license: NonEmpty
    pass_rates: tuple[PassRate, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.answer_type is not None and (self.answer_type is QuestionType.CHOICE) != bool(self.options):
            raise ValueError(f"answer_type {self.answer_type} with {len(self.options)} options; omit one of them")
        if self.options:
            if len(self.options) != NUM_OPTIONS:
                raise ValueError(f"{len(self.options)} options, expected {NUM_OPTIONS}, or none for an open question")
            if len({" ".join(option.split()).casefold() for option in self.options}) != NUM_OPTIONS:
                raise ValueError("the options must differ from each other")
            if len(self.answer) != 1 or self.answer not in LETTERS[:NUM_OPTIONS]:
                raise ValueError(f"answer {self.answer!r} must be one letter of {LETTERS[:NUM_OPTIONS]}")
        for interval in self.evidence:
            self._check_evidence(interval)
        measured = [rate.condition for rate in self.pass_rates]
        if len(set(measured)) < len(measured):
            raise ValueError(f"pass rates for {', '.join(measured)}, expected each condition once")
        if any(rate.num_chosen and len(rate.num_chosen) != len(self.options) for rate in self.pass_rates):
            raise ValueError(f"a pass rate counts other options than the {len(self.options)} of the question")
        return self

    def _check_evidence(self, interval: Interval) -> None:
        if interval.medium >= len(self.media):
            raise ValueError(f"evidence is in medium {interval.medium}, expected one of the {len(self.media)}, from 0")
        seconds = self.media[interval.medium].duration_seconds
        if seconds is None:
            raise ValueError(f"evidence is a time range of medium {interval.medium}, an image; expected a video")
        # Writers round to microseconds.
        if interval.end_seconds > seconds + 1e-6:
            raise ValueError(f"evidence ends at {interval.end_seconds} s, after the video ({seconds} s)")

    @property
    def question_type(self) -> QuestionType:
        """How an answer is compared; the options decide, unless `answer_type` says more."""
        return QuestionType.CHOICE if self.options else self.answer_type or QuestionType.OPEN

    @property
    def digests(self) -> tuple[str, ...]:
        """The digests of the media in their order: equal for questions with the same media."""
        return tuple(medium.digest for medium in self.media)

    @property
    def longest_seconds(self) -> float | None:
        """Length of the longest of its videos; None if there are only images."""
        return max((medium.duration_seconds for medium in self.media if medium.duration_seconds), default=None)

    def pass_rate(self, condition: Condition) -> PassRate | None:
        """Return how the question was answered under a condition, if that was measured."""
        return next((rate for rate in self.pass_rates if rate.condition is condition), None)


def write_records(path: Path, records: Iterable[QuestionRecord]) -> None:
    """Write `records` in the given order as one Parquet file, complete or not at all, a thousand in memory at a time.

    Raises:
        DataError: When two records share an id, or the file can't be written.
    """
    remaining = iter(records)
    seen: set[str] = set()
    with atomic_path(path) as temporary, pq.ParquetWriter(temporary, RECORDS_SCHEMA, compression="zstd") as writer:
        while group := list(islice(remaining, ROWS_PER_GROUP)):
            for record in group:
                if record.question_id in seen:
                    raise DataError(
                        f"{path}: question id {record.question_id!r} is used more than once; ids must be unique"
                    )
                seen.add(record.question_id)
            rows = [record.model_dump(mode="json") for record in group]
            writer.write_table(pa.Table.from_pylist(rows, schema=RECORDS_SCHEMA))


def check_version(path: Path) -> int:
    """Return the version of a file's records, without reading them.

    Raises:
        UsageError: When its records have a version that can't be read, or it has none.
        DataError: When it is damaged.
    """
    stated = read_parquet_metadata(_open(path), path).get(VERSION_KEY)
    if stated is None:
        raise UsageError(f"{path}: a Parquet file without question records; expected one written by longvideo-data")
    version = next((version for version in READABLE if stated == str(version).encode()), None)
    if version is None:
        raise UsageError(
            f"{path}: records of version {visible(stated.decode(errors='replace'))}, this program reads versions "
            f"{' and '.join(map(str, READABLE))}; rebuild the dataset or install the matching release"
        )
    return version


def read_records(path: Path) -> list[QuestionRecord]:
    """Read every record of a file at once; see `iter_records`."""
    return list(iter_records(path))


def iter_records(path: Path, *, in_order_of_ids: bool = False) -> Iterator[QuestionRecord]:
    """Read the records of a file that `write_records` wrote, or a file of the previous version, validating each one.

    A thousand are in memory at a time; if they have to be sorted, the file is in memory as it is on disk, unpacked.

    Args:
        path: The file.
        in_order_of_ids: Give them in the order of their ids, not in that of the file.

    Raises:
        UsageError: When the file is missing, or holds records of another version or none at all.
        DataError: When it is damaged, a row breaks the rules, or two have the same id; the message names the row.
    """
    is_before = check_version(path) == BEFORE
    numbered = (
        read_parquet_in_order(_open(path), path, "question_id")
        if in_order_of_ids
        else enumerate(read_parquet_rows(_open(path), path))
    )
    media: dict[str, RecordMedium] = {}
    seen: set[str] = set()
    for number, row in numbered:
        record = _validated(path, number, upgrade_row(row) if is_before else row, media)
        if record.question_id in seen:
            shown = visible(repr(record.question_id), _SHOWN_CHARACTERS)
            raise DataError(f"{path}: row {number}: question id {shown} is used more than once; ids must be unique")
        seen.add(record.question_id)
        yield record


class RecordFile(AbstractContextManager["RecordFile"]):
    """The records of a file by their numbers (from 0), in any order, a thousand in memory; errors as `iter_records`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._is_before = check_version(path) == BEFORE
        self._rows = ParquetRows(_open(path), path)

    def read(self, number: int) -> QuestionRecord:
        """Read and validate one record."""
        row = self._rows.read(number)
        return _validated(self._path, number, upgrade_row(row) if self._is_before else row, {})

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        self._rows.close()


def count_records(path: Path) -> int:
    """See how many records a file holds, without reading them; 0 if there is no file.

    Raises:
        DataError: When it is damaged.
    """
    return count_parquet_rows(_open(path), path) if path.exists() else 0


def _open(path: Path) -> BinaryIO:
    folder = ForeignFolder(path.parent, error=DataError)
    if not folder.has(path.name):
        raise UsageError(f"{path}: no such records file; expected a Parquet file written by longvideo-data")
    return folder.open(path.name)


def list_media(records: Iterable[QuestionRecord]) -> dict[str, RecordMedium]:
    """List the distinct media of records by their digests, in the order in which they first occur."""
    media: dict[str, RecordMedium] = {}
    for record in records:
        for medium in record.media:
            media.setdefault(medium.digest, medium)
    return media


def describe_invalid(error: ValidationError) -> str:
    """Describe in one line the first problem of a validation error and its location."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    value = f", got {visible(repr(first['input']), _SHOWN_CHARACTERS)}" if place else ""
    return visible(f"{place + ': ' if place else ''}{' '.join(message.split())}{value}")


def _validated(path: Path, number: int, row: dict[str, Any], media: dict[str, RecordMedium]) -> QuestionRecord:
    """Turn one row into a record, or say which row is wrong and why; records about one medium share it."""
    named = row.get("media")
    if isinstance(named, list):
        row["media"] = [media.get(repr(medium), medium) for medium in cast(list[object], named)]
    try:
        record = QuestionRecord.model_validate(row)
    except ValidationError as error:
        name = visible(repr(row.get("question_id")), _SHOWN_CHARACTERS)
        raise DataError(f"{path}: row {number} ({name}): {describe_invalid(error)}") from error
    if isinstance(named, list):
        media |= zip(map(repr, cast(list[object], named)), record.media, strict=True)
    return record
