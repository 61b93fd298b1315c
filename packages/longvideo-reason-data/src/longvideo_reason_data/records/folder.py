"""The layout of a dataset on disk, and whether a folder keeps to it.

    records.parquet   the questions
    videos/           the video files that they name
    images/           the pictures that they name
    manifest.json     how the records came about: what went in, what was dropped and why
    dropped.jsonl     each dropped item with its reason
    segments.jsonl    what was seen and said in each segment of each video
    shards/           what became of each video, for going on with a build
    responses.jsonl   paid answers of language models, for going on with a build

Only the first three are needed to train. A check reads every byte of every video; it can't tell whether a question is
any good.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from pydantic import BaseModel, ConfigDict, ValidationError

from longrl_files.folders import ForeignFolder
from longrl_files.json_text import UnfitJsonError, parse_json
from longrl_files.messages import visible
from longvideo_reason_data.errors import DataError, UsageError
from longvideo_reason_data.media.decoders.base import DecoderName
from longvideo_reason_data.records.record import QuestionRecord, describe_invalid, iter_records
from longvideo_reason_data.records.versions import digested_row

RECORDS_NAME = "records.parquet"
VIDEOS_NAME = "videos"
IMAGES_NAME = "images"
MANIFEST_NAME = "manifest.json"
DROPPED_NAME = "dropped.jsonl"
SEGMENTS_NAME = "segments.jsonl"
SHARDS_NAME = "shards"
RESPONSES_NAME = "responses.jsonl"
CALLS_NAME = "calls.jsonl"

_Counts = dict[str, int]
_FORM = ConfigDict(extra="allow", strict=True)


class _StageCounts(BaseModel):
    model_config = _FORM

    input: int = 0
    kept: int = 0
    dropped: _Counts = {}


class _CallCounts(BaseModel):
    model_config = _FORM

    made: int = 0
    cached: int = 0
    failed: _Counts = {}


class _FilterCounts(_StageCounts):
    calls: _CallCounts = _CallCounts()


class _Manifest(BaseModel):
    """What of a manifest is read by anything here; more may be in it."""

    model_config = _FORM

    input: _Counts = {}
    kept: _Counts = {}
    dropped: _Counts = {}
    stages: dict[str, _StageCounts] = {}
    filter: _FilterCounts = _FilterCounts()
    calls: _CallCounts = _CallCounts()
    models: dict[str, str | None] = {}
    settings: dict[str, Any] = {}
    dataset_hash: str | None = None


MAX_LINE_BYTES = 16 * 2**20
"""Most bytes that are read of one line of JSON."""


class RecordsHash:
    """A digest of what records say, for as many as there may be; they are added in the order of their ids."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._last_id = ""
        self.is_in_order = True
        """Whether the records so far came in the order of their ids."""

    def add(self, record: QuestionRecord) -> None:
        """Take in the next record."""
        self.is_in_order &= self._last_id <= record.question_id
        self._last_id = record.question_id
        line = json.dumps(digested_row(record.model_dump(mode="json")), sort_keys=True, ensure_ascii=False)
        self._digest.update(line.encode() + b"\n")

    def hexdigest(self) -> str:
        """The digest of all so far."""
        return self._digest.hexdigest()


def hash_records(records: Iterable[QuestionRecord]) -> str:
    """Compute a digest of what the records say, whatever their order in the file."""
    digest = RecordsHash()
    for record in sorted(records, key=lambda record: record.question_id):
        digest.add(record)
    return digest.hexdigest()


def read_dataset(folder: Path) -> list[QuestionRecord]:
    """Read the records of a dataset.

    Raises:
        UsageError: When the folder is missing or holds no dataset of this version.
        DataError: When the records are damaged.
    """
    return list(iter_dataset(folder))


def iter_dataset(folder: Path, *, in_order_of_ids: bool = False) -> Iterator[QuestionRecord]:
    """Read the records of a dataset one after the other; see `iter_records`.

    Raises:
        UsageError: When the folder is missing or holds no dataset of this version.
        DataError: When the records are damaged.
    """
    require_folder(folder)
    yield from iter_records(folder / RECORDS_NAME, in_order_of_ids=in_order_of_ids)


def require_folder(folder: Path) -> None:
    """Refuse a dataset's folder that isn't there.

    Raises:
        UsageError: When it isn't.
    """
    if not folder.is_dir():
        what = "is no folder" if folder.exists() else "no such folder"
        raise UsageError(f"{folder}: {what}; expected the folder of a dataset with {RECORDS_NAME}")


def read_decoder(folder: Path) -> DecoderName:
    """Read which decoder a dataset was built with; the default one for a dataset that no build made.

    Raises:
        UsageError: When it is one that this version doesn't know.
        DataError: When the manifest can't be read.
    """
    settings = read_manifest(folder).get("settings", {})
    name = settings.get("decoder", DecoderName.PYAV) if isinstance(settings, dict) else None
    if not isinstance(name, str) or name not in set(DecoderName):
        shown = visible(repr(name))
        raise UsageError(f"{folder / MANIFEST_NAME}: decoder is {shown}, expected one of {', '.join(DecoderName)}")
    return DecoderName(name)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest of a dataset; empty for a dataset without one.

    Raises:
        DataError: When it can't be read.
    """
    manifest = read_object(folder, MANIFEST_NAME)
    try:
        _Manifest.model_validate(manifest)
    except ValidationError as error:
        raise DataError(f"{folder / MANIFEST_NAME}: {describe_invalid(error)}; restore or remove it") from error
    return manifest


def read_object(folder: Path, name: str) -> dict[str, Any]:
    """Read a JSON object that lies in a dataset; empty if it isn't there.

    Raises:
        DataError: When it can't be read.
    """
    dataset = ForeignFolder(folder, error=DataError)
    if not dataset.has(name):
        return {}
    content = dataset.read_json(name)
    if not isinstance(content, dict):
        raise DataError(f"{folder / name}: expected a JSON object; restore or remove it")
    return cast(dict[str, Any], content)


@dataclass(frozen=True, slots=True, kw_only=True)
class JsonLine:
    """An object in a file of JSON lines.

    Attributes:
        number: Of the line, from 1.
        offset_bytes: Where the line begins.
        content: What it says.
    """

    number: int
    offset_bytes: int
    content: dict[str, Any]


def read_lines(folder: Path, name: str, *, offset_bytes: int = 0) -> Iterator[JsonLine]:
    """Read a file of JSON lines that lies in a dataset, one object after the other; nothing if it isn't there.

    Args:
        folder: The dataset.
        name: Of the file.
        offset_bytes: Where to begin; lines are numbered from there.

    Raises:
        DataError: When it can't be read.
    """
    dataset = ForeignFolder(folder, error=DataError)
    if not dataset.has(name):
        return
    with dataset.open(name) as file:
        file.seek(offset_bytes)
        number = 0
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > MAX_LINE_BYTES:
                raise DataError(f"{folder / name}: line {number} has more than {MAX_LINE_BYTES:,} bytes")
            if line.isspace():
                offset_bytes += len(line)
                continue
            try:
                row = parse_json(line)
            except UnfitJsonError as error:
                raise DataError(
                    f"{folder / name}: line {number} isn't JSON ({error}); restore or remove the file"
                ) from error
            if not isinstance(row, dict):
                raise DataError(f"{folder / name}: line {number} is no object; restore or remove the file")
            yield JsonLine(number=number, offset_bytes=offset_bytes, content=cast(dict[str, Any], row))
            offset_bytes += len(line)
