"""Datasets that others published, turned into records: the layouts of LongVideo-Reason and Video-R1.

A file is any table of `longvideo_reason_data.records.tables`, and `longvideo_reason_data.exchange.import_layouts` says
how its rows are read. Videos come separately and rarely all; a question whose video isn't there, or that isn't one this
package can hold, is dropped with its reason, never mended by guessing.
"""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from longvideo_reason_data.atomic_files import write_text_atomic
from longvideo_reason_data.errors import DataError, UsageError
from longvideo_reason_data.exchange.import_layouts import ImportLayout, PublishedQuestion, UnusableError, read_question
from longvideo_reason_data.generation.settings import BuildSettings
from longvideo_reason_data.generation.shards import Dropped, make_dropped
from longvideo_reason_data.generation.sources import SourceVideo, place_video, probe_source
from longvideo_reason_data.records.folder import DROPPED_NAME, MANIFEST_NAME, RECORDS_NAME, hash_records
from longvideo_reason_data.records.record import (
    NonEmpty,
    QuestionRecord,
    Skill,
    describe_invalid,
    write_records,
)
from longvideo_reason_data.records.splits import SplitFractions, assign_split
from longvideo_reason_data.records.tables import read_rows


class ImportSettings(BaseModel):
    """How published questions become records.

    Attributes:
        layout: Of the file.
        skill: Of questions that don't say theirs; None drops them.
        source: Where the videos are from.
        license: Under which licence they are.
        splits: Shares of the splits.
        seed: Decides splits.
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
        videos: The folder that the paths in it are relative to.
        output: The dataset's folder, new or empty.
        settings: How.

    Returns:
        The manifest, as it is written.

    Raises:
        UsageError: When a file or folder is missing, or the output is taken.
        DataError: When nothing of it can be used, or something can't be written.
    """
    if not file.is_file():
        raise UsageError(f"{file}: no such file; expected the questions of {settings.layout}")
    if not videos.is_dir():
        raise UsageError(f"{videos}: no such folder; expected the videos of {file.name}, set --videos")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UsageError(f"{output}: is already there; remove it or choose another folder with --output")
    folder = _VideoFolder(videos)
    records: list[QuestionRecord] = []
    dropped: list[Dropped] = []
    num_items = 0
    for number, item in enumerate(read_rows(file)):
        num_items += 1
        question_id = f"{file.stem}-{number:07d}"
        try:
            question = read_question(item, settings.layout, settings.skill)
            record = _make_record(question_id, question, item, folder.find(question.video), settings)
        except UnusableError as error:
            dropped.append(make_dropped("questions", question_id, error.reason, str(error)))
        else:
            records.append(record)
    if not records:
        first = f"; the first: {dropped[0].reason}, {dropped[0].detail}" if dropped else ""
        raise DataError(f"{file}: none of its {num_items} questions can be used{first}")
    used = {record.video_digest for record in records}
    for source in folder.found.values():
        if isinstance(source, SourceVideo) and source.digest in used:
            place_video(source, output)
    counts = dict(sorted(Counter(item.reason for item in dropped).items()))
    manifest: dict[str, Any] = {
        "input": {"questions": num_items},
        "kept": {"questions": len(records)},
        "dropped": counts,
        "stages": {"questions": {"input": num_items, "kept": len(records), "dropped": counts}},
        "imported": {"file": file.name, "layout": settings.layout},
        "dataset_hash": hash_records(records),
    }
    lines = "".join(json.dumps(item.model_dump(mode="json"), ensure_ascii=False) + "\n" for item in dropped)
    write_text_atomic(output / DROPPED_NAME, lines)
    write_text_atomic(output / MANIFEST_NAME, json.dumps(manifest, indent=2) + "\n")
    write_records(output / RECORDS_NAME, records)
    return manifest


class _VideoFolder:
    """The videos that came with a file; each is opened once.

    Args:
        folder: Where they are.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder.resolve()
        self.found: dict[Path, SourceVideo | DataError] = {}

    def find(self, name: str) -> SourceVideo:
        """Find a video by the path that a question gives.

        Raises:
            UnusableError: When the path leads outside, or there is no readable video.
        """
        try:
            path = (self._folder / name).resolve()
            is_file = path.is_file()
        except (OSError, ValueError, RuntimeError) as error:
            raise UnusableError("video_missing", f"{name!r} is no path ({error})") from error
        if not path.is_relative_to(self._folder):
            raise UnusableError("video_outside", f"{name!r} leads outside the folder of videos")
        if not is_file:
            raise UnusableError("video_missing", f"{name!r} isn't in the folder of videos")
        if path not in self.found:
            try:
                self.found[path] = probe_source(path, BuildSettings())
            except DataError as error:
                self.found[path] = error
        source = self.found[path]
        if isinstance(source, DataError):
            raise UnusableError("video_unreadable", f"{name!r}: {source}")
        return source


def _make_record(
    question_id: str, question: PublishedQuestion, item: Mapping[str, Any], video: SourceVideo, settings: ImportSettings
) -> QuestionRecord:
    try:
        return QuestionRecord(
            question_id=question_id,
            video_path=video.dataset_path,
            video_digest=video.digest,
            video_duration_seconds=video.duration_seconds,
            split=assign_split(video.digest, settings.splits, seed=settings.seed),
            skill=question.skill,
            question=question.question,
            options=question.options,
            answer=question.answer,
            evidence=(),
            reasoning=question.reasoning,
            source=settings.source or str(item.get("data_source") or settings.layout),
            license=settings.license,
        )
    except ValidationError as error:
        raise UnusableError("record_invalid", describe_invalid(error)) from error
