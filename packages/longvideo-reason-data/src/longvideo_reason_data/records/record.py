"""The question record: what the pipeline writes, the trainer reads and the evaluation uses.

One pydantic model is the only definition; the Parquet schema mirrors it. A file has the version of the model in its
metadata; the previous version is read too (`longvideo_reason_data.records.versions`), and files of any other version
are refused. Nothing here opens a medium.
"""

from collections.abc import Iterable
from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from longvideo_reason_data.atomic_files import atomic_path
from longvideo_reason_data.errors import DataError, UsageError
from longvideo_reason_data.records.answers import LETTERS
from longvideo_reason_data.records.medium import NonEmpty, RecordMedium
from longvideo_reason_data.records.pass_rates import Condition, PassRate
from longvideo_reason_data.records.versions import BEFORE, READABLE, SCHEMA_VERSION, upgrade_row

NUM_OPTIONS = 4

_ROWS_PER_GROUP = 1000
_VERSION_KEY = b"longvideo_reason_data.schema_version"
_MEDIUM_TYPE = pa.struct(
    [
        pa.field("kind", pa.string()),
        pa.field("path", pa.string()),
        pa.field("digest", pa.string()),
        pa.field("duration_seconds", pa.float64()),
    ]
)
_INTERVAL_TYPE = pa.struct(
    [
        pa.field("start_seconds", pa.float64()),
        pa.field("end_seconds", pa.float64()),
        pa.field("medium", pa.int32()),
    ]
)
_PASS_RATE_TYPE = pa.struct(
    [
        pa.field("condition", pa.string()),
        pa.field("model", pa.string()),
        pa.field("num_asked", pa.int32()),
        pa.field("num_right", pa.int32()),
        pa.field("num_unanswered", pa.int32()),
        pa.field("num_chosen", pa.list_(pa.int32())),
    ]
)
RECORDS_SCHEMA = pa.schema(
    [
        pa.field("schema_version", pa.int32(), nullable=False),
        pa.field("question_id", pa.string(), nullable=False),
        pa.field("media", pa.list_(_MEDIUM_TYPE), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("skill", pa.string(), nullable=False),
        pa.field("question", pa.string(), nullable=False),
        pa.field("options", pa.list_(pa.string()), nullable=False),
        pa.field("answer", pa.string(), nullable=False),
        pa.field("evidence", pa.list_(_INTERVAL_TYPE), nullable=False),
        pa.field("reasoning", pa.string(), nullable=False),
        pa.field("demonstration", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("license", pa.string(), nullable=False),
        pa.field("pass_rates", pa.list_(_PASS_RATE_TYPE), nullable=False),
    ],
    metadata={_VERSION_KEY: str(SCHEMA_VERSION).encode()},
)
"""The columns of a records file."""

Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Skill(StrEnum):
    """The skill that a question tests."""

    TEMPORAL = "temporal"
    GOAL = "goal"
    SPATIAL = "spatial"
    PLOT = "plot"


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
    different options and a letter as its answer; an open-ended one has no options and free text. `pass_rates` record
    how models answered it, if measured; at most one per condition.
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
    evidence: tuple[Interval, ...]
    reasoning: str
    demonstration: Demonstration = Demonstration.WATCHED
    source: NonEmpty
    license: NonEmpty
    pass_rates: tuple[PassRate, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
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
        while group := list(islice(remaining, _ROWS_PER_GROUP)):
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
    try:
        metadata = pq.read_schema(path).metadata or {}
    except (pa.ArrowException, OSError) as error:
        first_line = (str(error).splitlines() or ["unreadable"])[0]
        raise DataError(f"{path}: not a readable Parquet file ({first_line})") from error
    stated = metadata.get(_VERSION_KEY)
    if stated is None:
        raise UsageError(f"{path}: a Parquet file without question records; expected one written by longvideo-data")
    version = next((version for version in READABLE if stated == str(version).encode()), None)
    if version is None:
        raise UsageError(
            f"{path}: records of version {stated.decode(errors='replace')}, but this program reads versions "
            f"{' and '.join(map(str, READABLE))}; rebuild the dataset or install the matching release"
        )
    return version


def read_records(path: Path) -> list[QuestionRecord]:
    """Read every record of a file that `write_records` wrote, or a file of the previous version, validating each one.

    Raises:
        UsageError: When the file is missing, or holds records of another version or none at all.
        DataError: When it is damaged or a row breaks the rules; the message names the row.
    """
    if not path.is_file():
        raise UsageError(f"{path}: no such records file; expected a Parquet file written by longvideo-data")
    version = check_version(path)
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        first_line = (str(error).splitlines() or ["unreadable"])[0]
        raise DataError(f"{path}: not a readable Parquet file ({first_line})") from error
    rows: list[dict[str, Any]] = table.to_pylist()
    if version == BEFORE:
        rows = [upgrade_row(row) for row in rows]
    return [_validated(path, number, row) for number, row in enumerate(rows)]


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
    shown = repr(first["input"])
    value = f", got {shown if len(shown) <= 60 else shown[:57] + '...'}" if place else ""
    return " ".join(f"{place + ': ' if place else ''}{message}{value}".split())


def _validated(path: Path, number: int, row: dict[str, Any]) -> QuestionRecord:
    """Turn one row into a record; an error names the row and the reason."""
    try:
        return QuestionRecord.model_validate(row)
    except ValidationError as error:
        raise DataError(f"{path}: row {number} ({row.get('question_id')!r}): {describe_invalid(error)}") from error
