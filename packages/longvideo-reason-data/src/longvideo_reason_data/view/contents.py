"""What the browser shows: records, described segments, dropped items and sums, gathered from a dataset's files.

Only the records have to be there. Files about how the dataset was made are shown as far as they exist; one that exists
and can't be read is an error: a page without it would look like that of a dataset that dropped nothing.
The form is short on purpose (lists instead of objects, a number instead of a medium's digest): a page may hold very
many questions; and of those one at a time is in memory. Nothing here makes pictures or HTML.
"""

import json
from array import array
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from longvideo_reason_data.errors import DataError
from longvideo_reason_data.inspection.statistics import DatasetFigures
from longvideo_reason_data.parquet_rows import count_rows
from longvideo_reason_data.records.folder import (
    DROPPED_NAME,
    MANIFEST_NAME,
    RECORDS_NAME,
    SEGMENTS_NAME,
    iter_dataset,
    require_folder,
)
from longvideo_reason_data.records.medium import RecordMedium
from longvideo_reason_data.records.record import QuestionRecord, iter_records

FILTERS_NAME = "filters.json"
UNFILTERED_NAME = "unfiltered.parquet"

_SEGMENT_NAMES = ("video_digest", "start_seconds", "end_seconds", "caption", "speech")
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
        records = self._dataset / RECORDS_NAME
        num_rows = count_rows(records) if records.is_file() else 0
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
        for _, row in _read_lines(self._dataset / DROPPED_NAME, ("stage", "item", "reason", "detail")):
            yield row
        items = _read_filtered(self._dataset / FILTERS_NAME)
        unfiltered = self._dataset / UNFILTERED_NAME
        if items and unfiltered.is_file():
            for record in iter_records(unfiltered, in_order_of_ids=True):
                item = items.pop(record.question_id, None)
                if item is not None:
                    yield item | self._describe(record)
        yield from items.values()

    def media(self) -> Iterator[dict[str, Any]]:
        """Describe the media of all questions so far, those of kept ones first.

        Raises:
            DataError: When the file of segments is damaged.
        """
        path = self._dataset / SEGMENTS_NAME
        places: defaultdict[str, array[int]] = defaultdict(lambda: array("q"))
        for place, row in _read_lines(path, _SEGMENT_NAMES):
            places[str(row["video_digest"])].append(place)
        for medium, origin in self._named:
            segments = list(_read_places(path, places.get(medium.digest, ())))
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
            "manifest": _read_object(self._dataset / MANIFEST_NAME),
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


def _read_places(path: Path, places: Sequence[int]) -> Iterator[list[Any]]:
    """Read the segments that begin at some places of their file: start, end, what is seen, what is said."""
    if places:
        with path.open("rb") as file:
            for place in places:
                file.seek(place)
                row = json.loads(file.readline())
                yield [row[name] for name in _SEGMENT_NAMES[1:]]


def _read_filtered(path: Path) -> dict[str, dict[str, Any]]:
    """Read what a filter took out of the dataset, by the question's id."""
    dropped: dict[str, dict[str, Any]] = {}
    for item in _read_object(path).get("items", []):
        if not isinstance(item, dict) or not {"question_id", "reason", "detail"} <= item.keys():
            raise DataError(f"{path}: an item is {item!r}, expected question_id, reason and detail; filter again")
        known = cast(dict[str, Any], item)
        shown = {"stage": "filter", "item": known["question_id"], "reason": known["reason"], "detail": known["detail"]}
        dropped[str(known["question_id"])] = shown
    return dropped


def _read_lines(path: Path, names: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Read a file of JSON lines that may not be there, each with its place in bytes; it has to have the names."""
    place = 0
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip(b"\n"):
                    row = _parse(path, line.decode("utf-8"), f"line {number}")
                    if missing := [name for name in names if name not in row]:
                        raise DataError(f"{path}: line {number} has no {missing[0]!r}; build the dataset again")
                    yield place, row
                place += len(line)
    except FileNotFoundError:
        return
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not readable ({error})") from error


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
