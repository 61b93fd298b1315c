"""What the browser shows: records, described segments, dropped items and sums, gathered from a dataset's files.

Only the records have to be there. Files about how the dataset was made are shown as far as they exist; one that exists
and can't be read is an error: a page without it would look like that of a dataset that dropped nothing.
The form is short on purpose (lists instead of objects, a number instead of a medium's digest): a page may hold very
many questions. Nothing here makes pictures or HTML.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from longvideo_reason_data.errors import DataError
from longvideo_reason_data.inspection.statistics import describe_dataset
from longvideo_reason_data.records.folder import DROPPED_NAME, MANIFEST_NAME, SEGMENTS_NAME, read_dataset
from longvideo_reason_data.records.medium import RecordMedium
from longvideo_reason_data.records.record import QuestionRecord, read_records

FILTERS_NAME = "filters.json"
UNFILTERED_NAME = "unfiltered.parquet"

# Conditions that tell how hard a question is, the better one first.
_DIFFICULTY_CONDITIONS = ("rollouts", "full")


def collect_contents(dataset: Path) -> tuple[dict[str, Any], list[RecordMedium]]:
    """Gather what a dataset holds.

    Args:
        dataset: Its folder.

    Returns:
        The contents of the page, and its videos and pictures in their order: first those that questions were kept
        about, then those that only dropped ones are about.

    Raises:
        UsageError: When the folder is missing or holds no dataset of this version.
        DataError: When one of its files is damaged.
    """
    records = read_dataset(dataset)
    filtered = _read_filtered(dataset)
    firsts: dict[str, tuple[RecordMedium, QuestionRecord]] = {}
    for record in (*records, *(record for _, record in filtered if record)):
        for medium in record.media:
            firsts.setdefault(medium.digest, (medium, record))
    numbers = {digest: number for number, digest in enumerate(firsts)}
    segments = _read_segments(dataset / SEGMENTS_NAME)
    contents = {
        "name": dataset.resolve().name,
        "counts": describe_dataset(dataset),
        "media": [
            _describe_medium(medium, record, segments.get(digest, [])) for digest, (medium, record) in firsts.items()
        ],
        "questions": [_describe_question(record, numbers) for record in records],
        "dropped": [
            *_read_dropped(dataset / DROPPED_NAME),
            *(item | _describe_question(record, numbers) if record else item for item, record in filtered),
        ],
        "manifest": _read_object(dataset / MANIFEST_NAME),
    }
    return contents, [medium for medium, _ in firsts.values()]


def difficulty_of(pass_rates: Sequence[dict[str, Any]]) -> str:
    """Sort a question by how often it was answered rightly: easy, medium, hard, or unmeasured.

    Rollouts of the policy count before answers of another model.
    """
    shares = {rate["condition"]: rate["num_right"] / rate["num_asked"] for rate in pass_rates}
    measured = [shares[condition] for condition in _DIFFICULTY_CONDITIONS if condition in shares]
    if not measured:
        return "unmeasured"
    return "easy" if measured[0] >= 0.75 else "hard" if measured[0] <= 0.25 else "medium"


def _describe_medium(medium: RecordMedium, record: QuestionRecord, segments: list[list[Any]]) -> dict[str, Any]:
    return {
        "kind": str(medium.kind),
        "path": medium.path,
        "digest": medium.digest,
        "seconds": medium.duration_seconds,
        "split": str(record.split),
        "source": record.source,
        "license": record.license,
        "segments": segments,
    }


def _describe_question(record: QuestionRecord, numbers: Mapping[str, int]) -> dict[str, Any]:
    row = record.model_dump(mode="json")
    rates = cast(list[dict[str, Any]], row.get("pass_rates", []))
    return {
        "id": record.question_id,
        "media": [numbers[digest] for digest in record.digests],
        "split": str(record.split),
        "skill": str(record.skill),
        "difficulty": difficulty_of(rates),
        "question": record.question,
        "options": list(record.options),
        "answer": record.answer,
        "evidence": [[span.start_seconds, span.end_seconds, span.medium] for span in record.evidence],
        "reasoning": record.reasoning,
        "rates": rates,
    }


def _read_segments(path: Path) -> dict[str, list[list[Any]]]:
    """Read the described segments of each video, by its digest: start, end, what is seen, what is said."""
    segments: dict[str, list[list[Any]]] = {}
    for row in _read_lines(path, ("video_digest", "start_seconds", "end_seconds", "caption", "speech")):
        segment = [row["start_seconds"], row["end_seconds"], row["caption"], row["speech"]]
        segments.setdefault(str(row["video_digest"]), []).append(segment)
    return segments


def _read_dropped(path: Path) -> list[dict[str, Any]]:
    return _read_lines(path, ("stage", "item", "reason", "detail"))


def _read_filtered(dataset: Path) -> list[tuple[dict[str, Any], QuestionRecord | None]]:
    """Read what a filter took out of the dataset, together with the questions themselves if they were kept."""
    path = dataset / FILTERS_NAME
    items = _read_object(path).get("items", [])
    unfiltered = dataset / UNFILTERED_NAME
    records: dict[str, QuestionRecord] = {}
    if items and unfiltered.is_file():
        records = {record.question_id: record for record in read_records(unfiltered)}
    dropped: list[tuple[dict[str, Any], QuestionRecord | None]] = []
    for item in items:
        if not isinstance(item, dict) or not {"question_id", "reason", "detail"} <= item.keys():
            raise DataError(f"{path}: an item is {item!r}, expected question_id, reason and detail; filter again")
        known = cast(dict[str, Any], item)
        shown = {"stage": "filter", "item": known["question_id"], "reason": known["reason"], "detail": known["detail"]}
        dropped.append((shown, records.get(known["question_id"])))
    return dropped


def _read_lines(path: Path, names: Sequence[str]) -> list[dict[str, Any]]:
    """Read a file of JSON lines that may not be there; each line has to have the names."""
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(_read_text(path).split("\n"), 1):
        if not line:
            continue
        row = _parse(path, line, f"line {number}")
        if missing := [name for name in names if name not in row]:
            raise DataError(f"{path}: line {number} has no {missing[0]!r}; build the dataset again")
        rows.append(row)
    return rows


def _read_object(path: Path) -> dict[str, Any]:
    text = _read_text(path)
    return _parse(path, text, "the file") if text else {}


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not readable ({error})") from error


def _parse(path: Path, text: str, place: str) -> dict[str, Any]:
    try:
        value: object = json.loads(text)
    except ValueError as error:
        raise DataError(f"{path}: {place} isn't JSON ({error}); restore or remove the file") from error
    if not isinstance(value, dict):
        raise DataError(f"{path}: {place} is no object; restore or remove the file")
    return cast(dict[str, Any], value)
