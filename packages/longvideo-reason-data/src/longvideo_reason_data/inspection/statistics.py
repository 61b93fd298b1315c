"""Figures of a dataset: how many questions, videos and hours, and how often models answered rightly."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from longvideo_reason_data.records.folder import hash_records, read_dataset
from longvideo_reason_data.records.medium import MediumKind
from longvideo_reason_data.records.pass_rates import Condition
from longvideo_reason_data.records.record import QuestionRecord, list_media


def describe_dataset(folder: Path) -> dict[str, Any]:
    """Count what a dataset holds.

    Raises:
        UsageError: When the folder is missing or holds no dataset of this version.
        DataError: When the records can't be read.
    """
    records = read_dataset(folder)
    media = list_media(records)
    videos = {digest: medium for digest, medium in media.items() if medium.kind is MediumKind.VIDEO}
    splits = {digest: record.split for record in records for digest in record.digests if digest in videos}
    return {
        "questions": len(records),
        "videos": len(videos),
        "images": len(media) - len(videos),
        "hours": round(sum(medium.duration_seconds or 0.0 for medium in videos.values()) / 3600, 3),
        "questions_by_split": _counted(record.split for record in records),
        "videos_by_split": _counted(splits.values()),
        "questions_by_skill": _counted(record.skill for record in records),
        "right_letters": _counted(record.answer for record in records if record.options),
        "open_questions": sum(not record.options for record in records),
        "evidence_seconds": round(
            sum(span.end_seconds - span.start_seconds for record in records for span in record.evidence), 3
        ),
        "reasoning_words": sum(len(record.reasoning.split()) for record in records),
        "pass_rates": describe_pass_rates(records),
        "licenses": _counted(record.license for record in records),
        "dataset_hash": hash_records(records),
    }


def _counted(values: Iterable[str]) -> dict[str, int]:
    return {str(value): count for value, count in sorted(Counter(values).items())}


def describe_pass_rates(records: Iterable[QuestionRecord]) -> Mapping[str, Mapping[str, Any]]:
    """Sum up how the questions were answered, by condition: how many, how often rightly, how often not at all."""
    sums: defaultdict[Condition, list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    for record in records:
        for rate in record.pass_rates:
            counted = (1, rate.num_asked, rate.num_right, rate.num_unanswered)
            sums[rate.condition] = [total + one for total, one in zip(sums[rate.condition], counted, strict=True)]
    return {
        str(condition): {
            "questions": sums[condition][0],
            "answers": sums[condition][1],
            "right_rate": round(sums[condition][2] / sums[condition][1], 4),
            "unanswered_rate": round(sums[condition][3] / sums[condition][1], 4),
        }
        for condition in Condition
        if condition in sums
    }
