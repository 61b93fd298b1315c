"""The layout of a dataset on disk, and whether a folder keeps to it.

    records.parquet   the questions
    videos/           the video files that they name
    manifest.json     how the records came about: what went in, what was dropped and why
    dropped.jsonl     each dropped item with its reason
    segments.jsonl    what was seen and said in each segment of each video
    shards/           what became of each video, for going on with a build
    responses.jsonl   paid answers of language models, for going on with a build

Only the first two are needed to train. A check reads every byte of every video; it can't tell whether a question is
any good.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

from longvideo_reason_data.answers import LETTERS
from longvideo_reason_data.decoders.base import DecoderName
from longvideo_reason_data.errors import DataError, UsageError
from longvideo_reason_data.records import NUM_OPTIONS, QuestionRecord, Split, read_records, resolve_video
from longvideo_reason_data.videos import VideoFile

RECORDS_NAME = "records.parquet"
VIDEOS_NAME = "videos"
MANIFEST_NAME = "manifest.json"
DROPPED_NAME = "dropped.jsonl"
SEGMENTS_NAME = "segments.jsonl"
SHARDS_NAME = "shards"
RESPONSES_NAME = "responses.jsonl"
CALLS_NAME = "calls.jsonl"

# Chi-square with three degrees of freedom exceeds this once in ten thousand fair draws.
_LETTERS_LIMIT = 21.1


class RecordsHash:
    """A digest of what records say, for as many as there may be; they are added in the order of their ids."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def add(self, record: QuestionRecord) -> None:
        """Take in the next record."""
        line = json.dumps(record.model_dump(mode="json"), sort_keys=True, ensure_ascii=False)
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
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder; expected a dataset with {RECORDS_NAME}")
    return read_records(folder / RECORDS_NAME)


def read_decoder(folder: Path) -> DecoderName:
    """Read which decoder a dataset was built with; the default one for a dataset that no build made.

    Raises:
        UsageError: When it is one that this version doesn't know.
        DataError: When the manifest can't be read.
    """
    settings = read_manifest(folder).get("settings", {})
    name = settings.get("decoder", DecoderName.PYAV) if isinstance(settings, dict) else None
    if name not in set(DecoderName):
        raise UsageError(f"{folder / MANIFEST_NAME}: decoder is {name!r}, expected one of {', '.join(DecoderName)}")
    return DecoderName(name)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest of a dataset; empty for a dataset without one.

    Raises:
        DataError: When it can't be read.
    """
    path = folder / MANIFEST_NAME
    try:
        content: object = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not readable as JSON ({error}); restore or remove it") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected a JSON object; restore or remove it")
    return cast(dict[str, Any], content)


def check_dataset(folder: Path, benchmarks: Sequence[Path] = ()) -> list[str]:
    """Hold a dataset to its rules.

    Args:
        folder: The dataset.
        benchmarks: Files with questions or videos that must not be in it.

    Returns:
        One line per problem; none for a sound dataset.

    Raises:
        UsageError: When the folder is missing or holds no dataset of this version.
        DataError: When the records or the manifest can't be read at all.
    """
    from longvideo_reason_data.dataset_checks import check_footage, check_questions

    records = read_dataset(folder)
    problems = [] if records else [f"{folder / RECORDS_NAME}: no questions in it"]
    problems += _check_videos(folder, records)
    splits: dict[str, set[Split]] = {}
    for record in records:
        splits.setdefault(record.video_digest, set()).add(record.split)
    for digest, found in splits.items():
        if len(found) > 1:
            problems.append(f"video {digest[:12]} is in several splits: {', '.join(sorted(found))}")
    asked = Counter((record.video_digest, record.question, record.options) for record in records)
    problems += [f"asked {count} times about one video: {key[1]!r}" for key, count in asked.items() if count > 1]
    problems += _check_letters(records)
    problems += check_questions(records)
    problems += check_footage(folder, records, benchmarks)
    return problems + _check_manifest(folder, records)


def describe_dataset(folder: Path) -> dict[str, Any]:
    """Count what a dataset holds.

    Raises:
        UsageError: When the folder is missing or holds no dataset of this version.
        DataError: When the records can't be read.
    """
    from longvideo_reason_data.dataset_checks import describe_pass_rates

    records = read_dataset(folder)
    durations = {record.video_digest: record.video_duration_seconds for record in records}
    return {
        "questions": len(records),
        "videos": len(durations),
        "hours": round(sum(durations.values()) / 3600, 3),
        "questions_by_split": _counted(record.split for record in records),
        "videos_by_split": _counted({record.video_digest: record.split for record in records}.values()),
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


def _check_videos(folder: Path, records: Sequence[QuestionRecord]) -> list[str]:
    """Compare each video file with what the records say of it."""
    problems: list[str] = []
    by_path: dict[str, list[QuestionRecord]] = {}
    for record in records:
        by_path.setdefault(record.video_path, []).append(record)
    for video_path, questions in sorted(by_path.items()):
        try:
            video = VideoFile.open(resolve_video(folder, questions[0]))
            digest = video.content_digest
        except DataError as error:
            problems.append(f"{error} ({len(questions)} questions)")
            continue
        for record in questions:
            if record.video_digest != digest:
                problems.append(f"{record.question_id}: {video_path} is another file than the one asked about")
            elif abs(record.video_duration_seconds - video.duration_seconds) > 0.001:
                problems.append(
                    f"{record.question_id}: {video_path} lasts {video.duration_seconds:.3f} s, "
                    f"the record says {record.video_duration_seconds:.3f} s"
                )
    return problems


def _check_letters(records: Sequence[QuestionRecord]) -> list[str]:
    """Say in which splits the right letters are too uneven to be chance."""
    problems: list[str] = []
    for split in Split:
        letters = Counter(record.answer for record in records if record.split is split and record.options)
        expected = letters.total() / NUM_OPTIONS
        if not expected:
            continue
        spread = sum((letters[letter] - expected) ** 2 / expected for letter in LETTERS[:NUM_OPTIONS])
        if spread > _LETTERS_LIMIT:
            shown = ", ".join(f"{letter} {letters[letter]}" for letter in LETTERS[:NUM_OPTIONS])
            problems.append(f"{split}: the right letters are unbalanced: {shown}")
    return problems


def _check_manifest(folder: Path, records: Sequence[QuestionRecord]) -> list[str]:
    """Compare the manifest, when there is one, with the records."""
    stated = read_manifest(folder).get("dataset_hash")
    if stated is not None and stated != hash_records(records):
        path = folder / MANIFEST_NAME
        return [f"{path}: its dataset_hash isn't that of the records; one of the two is from another build"]
    return []
