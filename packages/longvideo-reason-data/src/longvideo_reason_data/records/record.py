"""The question record: what the pipeline writes, the trainer reads and the evaluation counts.

One pydantic model is the only definition; the Parquet schema is its typed mirror. A file carries the version of the
model in its metadata, and a file of another version is refused rather than guessed at. A record names its video by a
path inside the dataset folder and by the digest of the file's bytes, so a dataset can be moved but not confused with
another. Nothing here opens a video.
"""

from collections.abc import Iterable
from enum import StrEnum
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, Self

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator, model_validator

from longvideo_reason_data.atomic_files import atomic_path
from longvideo_reason_data.errors import DataError, UsageError
from longvideo_reason_data.records.answers import LETTERS
from longvideo_reason_data.records.pass_rates import Condition, PassRate

SCHEMA_VERSION = 2
NUM_OPTIONS = 4

_ROWS_PER_GROUP = 1000
_VERSION_KEY = b"longvideo_reason_data.schema_version"
_INTERVAL_TYPE = pa.struct([pa.field("start_seconds", pa.float64()), pa.field("end_seconds", pa.float64())])
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
_SCHEMA = pa.schema(
    [
        pa.field("schema_version", pa.int32(), nullable=False),
        pa.field("question_id", pa.string(), nullable=False),
        pa.field("video_path", pa.string(), nullable=False),
        pa.field("video_digest", pa.string(), nullable=False),
        pa.field("video_duration_seconds", pa.float64(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("skill", pa.string(), nullable=False),
        pa.field("question", pa.string(), nullable=False),
        pa.field("options", pa.list_(pa.string()), nullable=False),
        pa.field("answer", pa.string(), nullable=False),
        pa.field("evidence", pa.list_(_INTERVAL_TYPE), nullable=False),
        pa.field("reasoning", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("license", pa.string(), nullable=False),
        pa.field("pass_rates", pa.list_(_PASS_RATE_TYPE), nullable=False),
    ],
    metadata={_VERSION_KEY: str(SCHEMA_VERSION).encode()},
)

NonEmpty = Annotated[str, StringConstraints(min_length=1, pattern=r"\S")]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Skill(StrEnum):
    """What a question asks of the viewer."""

    TEMPORAL = "temporal"
    GOAL = "goal"
    SPATIAL = "spatial"
    PLOT = "plot"


class Split(StrEnum):
    """Which stage a video belongs to; no video is in two."""

    TRAIN_SFT = "train_sft"
    TRAIN_RL = "train_rl"
    HELD_OUT = "held_out"


class Interval(BaseModel):
    """A time range of the video, counted in seconds from its first frame."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    start_seconds: Seconds
    end_seconds: Seconds

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.end_seconds <= self.start_seconds:
            raise ValueError(f"interval {self.start_seconds} to {self.end_seconds} must end after it starts")
        return self


class QuestionRecord(BaseModel):
    """One question about one video, with its answer, the evidence and the reasoning that leads to it.

    A choice question has four different options and a letter as its answer; an open-ended one has no options and free
    text. `pass_rates` tell how models answered it, if any were asked; at most one per condition.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[2] = SCHEMA_VERSION
    question_id: NonEmpty
    video_path: NonEmpty
    video_digest: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    video_duration_seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    split: Split
    skill: Skill
    question: NonEmpty
    options: tuple[NonEmpty, ...]
    answer: NonEmpty
    evidence: tuple[Interval, ...]
    reasoning: str
    source: NonEmpty
    license: NonEmpty
    pass_rates: tuple[PassRate, ...] = ()

    @field_validator("video_path")
    @classmethod
    def _inside_the_dataset(cls, value: str) -> str:
        parts = PurePosixPath(value).parts
        if value.startswith("/") or "\\" in value or "\0" in value or ".." in parts or not parts:
            raise ValueError(f"video path {value!r} must be relative, with '/', and stay inside the dataset folder")
        return value

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
            # Writers round to microseconds.
            if interval.end_seconds > self.video_duration_seconds + 1e-6:
                raise ValueError(
                    f"evidence ends at {interval.end_seconds} s, after the video ({self.video_duration_seconds} s)"
                )
        measured = [rate.condition for rate in self.pass_rates]
        if len(set(measured)) < len(measured):
            raise ValueError(f"pass rates for {', '.join(measured)}, expected each condition once")
        if any(rate.num_chosen and len(rate.num_chosen) != len(self.options) for rate in self.pass_rates):
            raise ValueError(f"a pass rate counts other options than the {len(self.options)} of the question")
        return self

    def pass_rate(self, condition: Condition) -> PassRate | None:
        """Return how the question was answered under a condition, if that was measured."""
        return next((rate for rate in self.pass_rates if rate.condition is condition), None)


def write_records(path: Path, records: Iterable[QuestionRecord]) -> None:
    """Write `records` in the given order as one Parquet file, whole or not at all, a thousand in memory at a time.

    Raises:
        DataError: When two records share an id, or the file can't be written.
    """
    remaining = iter(records)
    seen: set[str] = set()
    with atomic_path(path) as temporary, pq.ParquetWriter(temporary, _SCHEMA, compression="zstd") as writer:
        while group := list(islice(remaining, _ROWS_PER_GROUP)):
            for record in group:
                if record.question_id in seen:
                    raise DataError(
                        f"{path}: question id {record.question_id!r} is used more than once; ids must be unique"
                    )
                seen.add(record.question_id)
            rows = [record.model_dump(mode="json") for record in group]
            writer.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA))


def check_version(path: Path) -> None:
    """See whether a file holds records of this version, without reading them.

    Raises:
        UsageError: When it holds records of another version or none at all.
        DataError: When it is damaged.
    """
    try:
        metadata = pq.read_schema(path).metadata or {}
    except (pa.ArrowException, OSError) as error:
        first_line = (str(error).splitlines() or ["unreadable"])[0]
        raise DataError(f"{path}: not a readable Parquet file ({first_line})") from error
    version = metadata.get(_VERSION_KEY)
    if version is None:
        raise UsageError(f"{path}: a Parquet file without question records; expected one written by longvideo-data")
    if version != str(SCHEMA_VERSION).encode():
        raise UsageError(
            f"{path}: records of version {version.decode(errors='replace')}, this program reads version "
            f"{SCHEMA_VERSION}; rebuild the dataset or install the matching release"
        )


def read_records(path: Path) -> list[QuestionRecord]:
    """Read every record of a file that `write_records` wrote, each one validated.

    Raises:
        UsageError: When the file is missing, or holds records of another version or none at all.
        DataError: When it is damaged or a row breaks the rules; the message names the row.
    """
    if not path.is_file():
        raise UsageError(f"{path}: no such records file; expected a Parquet file written by longvideo-data")
    check_version(path)
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        first_line = (str(error).splitlines() or ["unreadable"])[0]
        raise DataError(f"{path}: not a readable Parquet file ({first_line})") from error
    rows: list[dict[str, Any]] = table.to_pylist()
    return [_validated(path, number, row) for number, row in enumerate(rows)]


def resolve_video(dataset_folder: Path, record: QuestionRecord) -> Path:
    """Find the video of `record`.

    Args:
        dataset_folder: The folder that holds the records file.
        record: A record read from it.

    Returns:
        The absolute path of an existing file inside the folder.

    Raises:
        DataError: When the path leads outside the folder, also through a symbolic link, or the file is missing.
    """
    folder = dataset_folder.resolve()
    path = (folder / record.video_path).resolve()
    if not path.is_relative_to(folder):
        raise DataError(f"{record.question_id}: video {record.video_path!r} leads outside the dataset folder {folder}")
    if not path.is_file():
        raise DataError(f"{record.question_id}: video {record.video_path!r} is missing from {folder}")
    return path


def describe_invalid(error: ValidationError) -> str:
    """Say in one line what a validation error found first and where."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    shown = repr(first["input"])
    value = f", got {shown if len(shown) <= 60 else shown[:57] + '...'}" if place else ""
    return " ".join(f"{place + ': ' if place else ''}{message}{value}".split())


def _validated(path: Path, number: int, row: dict[str, Any]) -> QuestionRecord:
    """Turn one row into a record, or say which row is wrong and why."""
    try:
        return QuestionRecord.model_validate(row)
    except ValidationError as error:
        raise DataError(f"{path}: row {number} ({row.get('question_id')!r}): {describe_invalid(error)}") from error


HASTY_SOURCE = "timeline world, hasty demonstration"
