"""What the browser shows: records, described segments, dropped items and sums, gathered from a dataset's files.

Only the records have to be there. Files about how the dataset was made are shown as far as they exist; one that exists
and can't be read is an error: a page without it would look like that of a dataset that dropped nothing.
The form is short on purpose (lists instead of objects, a number instead of a medium's digest): a page may hold very
many questions; and of those one at a time is in memory. Nothing here makes pictures or HTML.
"""

from array import array
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from longrl_files.folders import ForeignFolder
from longvideo_reason_data.errors import DataError
from longvideo_reason_data.inspection.statistics import DatasetFigures
from longvideo_reason_data.records.folder import (
    DROPPED_NAME,
    MANIFEST_NAME,
    RECORDS_NAME,
    SEGMENTS_NAME,
    iter_dataset,
    read_object,
    require_folder,
)
from longvideo_reason_data.records.medium import RecordMedium
from longvideo_reason_data.records.notes import (
    FILTERS_NAME,
    DroppedNote,
    SegmentNote,
    read_filtered,
    read_notes,
    read_notes_at,
)
from longvideo_reason_data.records.record import QuestionRecord, count_records, iter_records

UNFILTERED_NAME = "unfiltered.parquet"

# Conditions that tell how hard a question is, the better one first.
_DIFFICULTY_CONDITIONS = ("rollouts", "full")


class DatasetContents:
    """What a dataset holds, read piece by piece: first the questions, then what was dropped, then the media of both.

    Args:
        dataset: Its folder.

    Raises:
        UsageError: When the folder is missing.
    """

    def __init__(self, dataset: Path) -> None:
        require_folder(dataset)
        self._dataset = dataset
        self._figures = DatasetFigures()
        self._numbers: dict[str, int] = {}
        self._named: list[tuple[RecordMedium, dict[str, str]]] = []

    def is_at_most(self, num_questions: int, num_bytes: int) -> bool:
        """Say whether there are so few questions, and the files about how they were made are so small.

        Raises:
            DataError: When the records are damaged.
        """
        names = (SEGMENTS_NAME, DROPPED_NAME, FILTERS_NAME)
        paths = [path for path in (self._dataset / name for name in names) if path.is_file()]
        num_rows = count_records(self._dataset / RECORDS_NAME)
        return num_rows <= num_questions and sum(path.stat().st_size for path in paths) <= num_bytes

    def questions(self) -> Iterator[dict[str, Any]]:
        """Describe the questions that were kept.

        Raises:
            UsageError: When there is no dataset of this version.
            DataError: When the records are damaged.
        """
        for record in iter_dataset(self._dataset):
            self._figures.add(record)
            yield self._describe(record)

    def dropped(self) -> Iterator[dict[str, Any]]:
        """Describe what was dropped, and the questions that a filter took out as far as they are known.

        Raises:
            DataError: When a file is damaged.
        """
        for _, note in read_notes(self._dataset, DROPPED_NAME, DroppedNote):
            yield note.model_dump()
        items = _read_filtered(self._dataset)
        if items and ForeignFolder(self._dataset, error=DataError).has(UNFILTERED_NAME):
            for record in iter_records(self._dataset / UNFILTERED_NAME, in_order_of_ids=True):
                item = items.pop(record.question_id, None)
                if item is not None:
                    yield item | self._describe(record)
        yield from items.values()

    def media(self) -> Iterator[dict[str, Any]]:
        """Describe the media of all questions so far, those of kept ones first.

        Raises:
            DataError: When the file of segments is damaged.
        """
        places: defaultdict[str, array[int]] = defaultdict(lambda: array("q"))
        for place, note in read_notes(self._dataset, SEGMENTS_NAME, SegmentNote):
            places[note.video_digest].append(place)
        for medium, origin in self._named:
            notes = read_notes_at(self._dataset, SEGMENTS_NAME, SegmentNote, places.get(medium.digest, ()))
            segments = [[note.start_seconds, note.end_seconds, note.caption, note.speech] for note in notes]
            yield _describe_medium(medium) | origin | {"segments": segments}

    @property
    def named_media(self) -> list[RecordMedium]:
        """The media in the order of `media`."""
        return [medium for medium, _ in self._named]

    def describe_rest(self) -> dict[str, Any]:
        """Give name, figures and manifest, when all questions were gone through.

        Raises:
            DataError: When the manifest is damaged.
        """
        return {
            "name": self._dataset.resolve().name,
            "counts": self._figures.describe(self._dataset),
            "manifest": read_object(self._dataset, MANIFEST_NAME),
        }

    def _describe(self, record: QuestionRecord) -> dict[str, Any]:
        for medium in record.media:
            if medium.digest not in self._numbers:
                self._numbers[medium.digest] = len(self._numbers)
                origin = {"split": str(record.split), "source": record.source, "license": record.license}
                self._named.append((medium, origin))
        return _describe_question(record, self._numbers)


def difficulty_of(pass_rates: Sequence[dict[str, Any]]) -> str:
    """Sort a question by how often it was answered rightly: easy, medium, hard, or unmeasured.

    Rollouts of the policy count before answers of another model.
    """
    shares = {rate["condition"]: rate["num_right"] / rate["num_asked"] for rate in pass_rates}
    measured = [shares[condition] for condition in _DIFFICULTY_CONDITIONS if condition in shares]
    if not measured:
        return "unmeasured"
    return "easy" if measured[0] >= 0.75 else "hard" if measured[0] <= 0.25 else "medium"


def _describe_medium(medium: RecordMedium) -> dict[str, Any]:
    return {
        "kind": str(medium.kind),
        "path": medium.path,
        "digest": medium.digest,
        "seconds": medium.duration_seconds,
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


def _read_filtered(dataset: Path) -> dict[str, dict[str, Any]]:
    """Read what a filter took out of the dataset, by the question's id."""
    return {
        note.question_id: {"stage": "filter", "item": note.question_id, "reason": note.reason, "detail": note.detail}
        for note in read_filtered(dataset)
    }
