"""Figures of a dataset: how many questions, videos and hours, and how often models answered rightly."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from longvideo_reason_data.records.folder import RecordsHash, iter_dataset
from longvideo_reason_data.records.medium import MediumKind, RecordMedium
from longvideo_reason_data.records.pass_rates import Condition
from longvideo_reason_data.records.record import QuestionRecord, Split

LEAST_HELD_OUT = 100
"""With fewer questions than this the standard error of an accuracy is above five points."""


def describe_dataset(folder: Path) -> dict[str, Any]:
    """Count what a dataset holds, with a thousand of its questions in memory at a time.

    Raises:
        UsageError: When the folder is missing or holds no dataset of this version.
        DataError: When the records can't be read.
    """
    figures = DatasetFigures()
    for record in iter_dataset(folder):
        figures.add(record)
    return figures.describe(folder)


class DatasetFigures:
    """What a dataset holds, counted record by record in the order of its file."""

    def __init__(self) -> None:
        self._hash = RecordsHash()
        self._media: dict[str, RecordMedium] = {}
        self._splits: dict[str, Split] = {}
        self._counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._rates = _RateSums()
        self._num_questions = self._num_open = self._num_reasoning_words = 0
        self._evidence_seconds = 0.0

    def add(self, record: QuestionRecord) -> None:
        """Count the next record."""
        self._hash.add(record)
        self._rates.add(record)
        for medium in record.media:
            self._media.setdefault(medium.digest, medium)
            self._splits[medium.digest] = record.split
        self._counts["split"][record.split] += 1
        self._counts["skill"][record.skill] += 1
        self._counts["license"][record.license] += 1
        if record.options:
            self._counts["letter"][record.answer] += 1
        self._num_questions += 1
        self._num_open += not record.options
        self._num_reasoning_words += len(record.reasoning.split())
        for span in record.evidence:
            self._evidence_seconds += span.end_seconds - span.start_seconds

    def describe(self, folder: Path) -> dict[str, Any]:
        """Give the figures.

        Args:
            folder: The dataset, which is read once more if it isn't in the order of its ids.
        """
        videos = {digest: medium for digest, medium in self._media.items() if medium.kind is MediumKind.VIDEO}
        return {
            "questions": self._num_questions,
            "videos": len(videos),
            "images": len(self._media) - len(videos),
            "hours": round(sum(medium.duration_seconds or 0.0 for medium in videos.values()) / 3600, 3),
            "questions_by_split": _sorted(self._counts["split"]),
            "videos_by_split": _sorted(Counter(self._splits[digest] for digest in videos)),
            "questions_by_skill": _sorted(self._counts["skill"]),
            "right_letters": _sorted(self._counts["letter"]),
            "open_questions": self._num_open,
            "evidence_seconds": round(self._evidence_seconds, 3),
            "reasoning_words": self._num_reasoning_words,
            "notes": note_splits(self._counts["split"], Counter(self._splits.values())),
            "pass_rates": self._rates.describe(),
            "licenses": _sorted(self._counts["license"]),
            "dataset_hash": self._hash.hexdigest() if self._hash.is_in_order else _hash_in_order(folder),
        }


def note_splits(questions: Mapping[str, int], media: Mapping[str, int]) -> list[str]:
    """Say which splits are empty, and whether too little is held out to measure with.

    Args:
        questions: Number of questions by split.
        media: Number of videos and images by split.
    """
    notes = [
        f"no questions in {split}; give it a larger share (--splits.{split.value.replace('_', '-')}), or add videos"
        for split in Split
        if not questions.get(split)
    ]
    held_out = questions.get(Split.HELD_OUT, 0)
    if 0 < held_out < LEAST_HELD_OUT:
        error = 0.5 / held_out**0.5
        notes.append(
            f"questions held out: {held_out}, about {media.get(Split.HELD_OUT, 0)} videos or images: an accuracy near "
            f"50% has a standard error of {error:.0%} or more, so only differences above {2 * error:.0%} can be seen; "
            f"{LEAST_HELD_OUT} questions are a beginning"
        )
    return notes


def _hash_in_order(folder: Path) -> str:
    digest = RecordsHash()
    for record in iter_dataset(folder, in_order_of_ids=True):
        digest.add(record)
    return digest.hexdigest()


def _sorted(counts: Mapping[str, int]) -> dict[str, int]:
    return {str(value): count for value, count in sorted(counts.items())}


class _RateSums:
    """How questions were answered, summed up by condition: how many, how often rightly, how often not at all."""

    def __init__(self) -> None:
        self._sums: defaultdict[Condition, list[int]] = defaultdict(lambda: [0, 0, 0, 0])

    def add(self, record: QuestionRecord) -> None:
        for rate in record.pass_rates:
            counted = (1, rate.num_asked, rate.num_right, rate.num_unanswered)
            self._sums[rate.condition] = [
                total + one for total, one in zip(self._sums[rate.condition], counted, strict=True)
            ]

    def describe(self) -> dict[str, dict[str, Any]]:
        return {
            str(condition): {
                "questions": self._sums[condition][0],
                "answers": self._sums[condition][1],
                "right_rate": round(self._sums[condition][2] / self._sums[condition][1], 4),
                "unanswered_rate": round(self._sums[condition][3] / self._sums[condition][1], 4),
            }
            for condition in Condition
            if condition in self._sums
        }


def describe_pass_rates(records: Iterable[QuestionRecord]) -> Mapping[str, Mapping[str, Any]]:
    """Sum up how the questions were answered, by condition: how many, how often rightly, how often not at all."""
    sums = _RateSums()
    for record in records:
        sums.add(record)
    return sums.describe()
