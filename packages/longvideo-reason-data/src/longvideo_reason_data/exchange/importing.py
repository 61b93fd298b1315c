"""Converts published datasets to records: the layouts of LongVideo-Reason and Video-R1.

A file is any table of `longvideo_reason_data.tables`, and `longvideo_reason_data.exchange.import_layouts` says how its
rows are read. Media come separately and are rarely complete; a question whose media are missing, or that can't become a
record, is dropped with its reason, never repaired by guessing.
"""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from longvideo_reason_data.atomic_files import write_text_atomic
from longvideo_reason_data.errors import DataError, UsageError
from longvideo_reason_data.exchange.import_layouts import ImportLayout, PublishedQuestion, read_question
from longvideo_reason_data.exchange.published_media import MediaFolder, UnusableError
from longvideo_reason_data.generation.shards import Dropped, make_dropped
from longvideo_reason_data.generation.sources import place_file
from longvideo_reason_data.ownership import own_folder
from longvideo_reason_data.records.folder import DROPPED_NAME, MANIFEST_NAME, RECORDS_NAME, hash_records
from longvideo_reason_data.records.medium import NonEmpty, RecordMedium
from longvideo_reason_data.records.record import QuestionRecord, Skill, Split, describe_invalid, write_records
from longvideo_reason_data.records.splits import SplitFractions, assign_splits
from longvideo_reason_data.tables import read_rows


class ImportSettings(BaseModel):
    """How published questions become records.

    Attributes:
        layout: Layout of the file.
        skill: Of questions that don't say theirs; None drops them.
        source: Source of the videos.
        license: Licence of the videos.
        splits: Shares of the splits.
        seed: Determines splits.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    layout: ImportLayout
    skill: Skill | None = None
    source: NonEmpty | None = None
    license: NonEmpty = "unknown"
    splits: SplitFractions = SplitFractions()
    seed: int = 0


def import_dataset(file: Path, videos: Path, output: Path, settings: ImportSettings) -> dict[str, Any]:
    """Turn a published file and a folder of videos into a dataset.

    Args:
        file: A table of questions.
        videos: The folder to which the paths in it are relative.
        output: The dataset's folder, new or empty.
        settings: Settings of the import.

    Returns:
        The manifest, as it is written.

    Raises:
        UsageError: When a file or folder is missing, or the output is taken or in use.
        DataError: When no question can be used, or something can't be written.
    """
    if not file.is_file():
        raise UsageError(f"{file}: no such file; expected the questions of {settings.layout}")
    if not videos.is_dir():
        raise UsageError(f"{videos}: no such folder; expected the videos of {file.name}, set --videos")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UsageError(f"{output}: already exists; remove it or choose another folder with --output")
    folder = MediaFolder(videos)
    records: list[QuestionRecord] = []
    dropped: list[Dropped] = []
    num_items = 0
    for number, item in enumerate(read_rows(file)):
        num_items += 1
        question_id = f"{file.stem}-{number:07d}"
        try:
            question = read_question(item, settings.layout, settings.skill)
            media = tuple(folder.find(kind, name) for kind, name in question.media)
            record = _make_record(question_id, question, item, media, settings)
        except UnusableError as error:
            dropped.append(make_dropped("questions", question_id, error.reason, str(error)))
        else:
            records.append(record)
    if not records:
        first = f"; the first: {dropped[0].reason}, {dropped[0].detail}" if dropped else ""
        raise DataError(f"{file}: none of its {num_items} questions can be used{first}")
    records = assign_splits(records, settings.splits, seed=settings.seed)
    used = {medium for record in records for medium in record.media}
    places = {medium.path: path for (_, path), medium in folder.found.items() if medium in used}
    counts = dict(sorted(Counter(item.reason for item in dropped).items()))
    manifest: dict[str, Any] = {
        "input": {"questions": num_items},
        "kept": {"questions": len(records)},
        "dropped": counts,
        "stages": {"questions": {"input": num_items, "kept": len(records), "dropped": counts}},
        "imported": {"file": file.name, "layout": settings.layout},
        "dataset_hash": hash_records(records),
    }
    with own_folder(output):
        for name, path in places.items():
            place_file(path, output / name)
        lines = "".join(json.dumps(item.model_dump(mode="json"), ensure_ascii=False) + "\n" for item in dropped)
        write_text_atomic(output / DROPPED_NAME, lines)
        write_text_atomic(output / MANIFEST_NAME, json.dumps(manifest, indent=2) + "\n")
        write_records(output / RECORDS_NAME, records)
    return manifest


def _make_record(
    question_id: str,
    question: PublishedQuestion,
    item: Mapping[str, Any],
    media: tuple[RecordMedium, ...],
    settings: ImportSettings,
) -> QuestionRecord:
    """Create a record; its split is determined when all are known."""
    try:
        return QuestionRecord(
            question_id=question_id,
            media=media,
            split=Split.TRAIN_SFT,
            skill=question.skill,
            question=question.question,
            options=question.options,
            answer=question.answer,
            answer_type=question.answer_type,
            evidence=(),
            reasoning=question.reasoning,
            source=settings.source or str(item.get("data_source") or settings.layout),
            license=settings.license,
        )
    except ValidationError as error:
        raise UnusableError("record_invalid", describe_invalid(error)) from error
