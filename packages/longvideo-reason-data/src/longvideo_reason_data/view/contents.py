"""What the browser shows: records, described segments, dropped items and sums, gathered from a dataset's files.

Only the records have to be there. Files about how the dataset was made are shown as far as they exist; one that exists
and can't be read is an error: a page without it would look like that of a dataset that dropped nothing.
The form is short on purpose (lists instead of objects, a number instead of a medium's digest): a page may hold very
many questions. Nothing here makes pictures or HTML.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from longrl_files.folders import ForeignFolder
from longvideo_reason_data.errors import DataError
from longvideo_reason_data.inspection.statistics import describe_dataset
from longvideo_reason_data.records.folder import (
    DROPPED_NAME,
    MANIFEST_NAME,
    SEGMENTS_NAME,
    read_dataset,
    read_object,
)
from longvideo_reason_data.records.medium import RecordMedium
from longvideo_reason_data.records.notes import DroppedNote, SegmentNote, read_filtered, read_notes
from longvideo_reason_data.records.record import QuestionRecord, read_records

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
    segments = _read_segments(dataset)
    contents = {
        "name": dataset.resolve().name,
        "counts": describe_dataset(dataset),
        "media": [
            _describe_medium(medium, record, segments.get(digest, [])) for digest, (medium, record) in firsts.items()
        ],
        "questions": [_describe_question(record, numbers) for record in records],
        "dropped": [
            *(note.model_dump() for note in read_notes(dataset, DROPPED_NAME, DroppedNote)),
            *(item | _describe_question(record, numbers) if record else item for item, record in filtered),
        ],
        "manifest": read_object(dataset, MANIFEST_NAME),
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


def _read_segments(dataset: Path) -> dict[str, list[list[Any]]]:
    """Read the described segments of each video, by its digest: start, end, what is seen, what is said."""
    segments: dict[str, list[list[Any]]] = {}
    for note in read_notes(dataset, SEGMENTS_NAME, SegmentNote):
        segment = [note.start_seconds, note.end_seconds, note.caption, note.speech]
        segments.setdefault(note.video_digest, []).append(segment)
    return segments


def _read_filtered(dataset: Path) -> list[tuple[dict[str, Any], QuestionRecord | None]]:
    """Read what a filter took out of the dataset, together with the questions themselves if they were kept."""
    notes = list(read_filtered(dataset))
    records: dict[str, QuestionRecord] = {}
    if notes and ForeignFolder(dataset, error=DataError).has(UNFILTERED_NAME):
        records = {record.question_id: record for record in read_records(dataset / UNFILTERED_NAME)}
    return [
        (
            {"stage": "filter", "item": note.question_id, "reason": note.reason, "detail": note.detail},
            records.get(note.question_id),
        )
        for note in notes
    ]
