"""From the shards of all videos to the files of a dataset, one video in memory at a time.

Only this step combines videos: right answers are distributed evenly over the letters within each split. Everything is
written in the order of the videos' digests, so that the files don't depend on how the shards were made.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TextIO

from longvideo_reason_data.atomic_files import atomic_path
from longvideo_reason_data.generation.settings import BuildSettings
from longvideo_reason_data.generation.shards import DraftedQuestion, Dropped, ShardFolder, VideoShard, make_dropped
from longvideo_reason_data.generation.sources import SourceVideo
from longvideo_reason_data.pipeline.manifest import Accounts
from longvideo_reason_data.pipeline.option_order import UnclearLetterError, balanced_letters, reorder_options
from longvideo_reason_data.records.folder import DROPPED_NAME, RECORDS_NAME, SEGMENTS_NAME, RecordsHash
from longvideo_reason_data.records.medium import RecordMedium
from longvideo_reason_data.records.record import Interval, QuestionRecord, Split, write_records
from longvideo_reason_data.records.splits import assign_split


def assemble(
    output: Path,
    sources: Sequence[SourceVideo],
    shards: ShardFolder,
    settings: BuildSettings,
    accounts: Accounts,
    dropped_videos: Sequence[Dropped],
) -> str:
    """Write the records, the described segments, and what was dropped.

    Args:
        output: The dataset's folder.
        sources: All videos; each has its shard.
        shards: The shards.
        settings: Settings of the build.
        accounts: Collects the counts of the shards.
        dropped_videos: Items dropped before there were shards.

    Returns:
        The digest of the records.

    Raises:
        DataError: When something can't be written, or a shard has disappeared.
    """
    ordered = sorted(sources, key=lambda source: source.digest)
    letters = _choose_letters(ordered, shards, settings)
    dataset_hash = RecordsHash()
    with ExitStack() as files:
        dropped_file = _open(files, output / DROPPED_NAME)
        segments_file = _open(files, output / SEGMENTS_NAME)

        def note_dropped(items: Sequence[Dropped]) -> None:
            for item in items:
                accounts.drop(item)
                _write_line(dropped_file, item.model_dump(mode="json"))

        def records() -> Iterator[QuestionRecord]:
            note_dropped(dropped_videos)
            for source in ordered:
                shard = shards.read(source)
                accounts.num_input["segments"] += source.num_segments
                accounts.num_input["questions"] += shard.num_questions
                _write_segments(segments_file, shard)
                written, unclear = _write_shard(shard, letters, settings)
                note_dropped([*shard.dropped, *unclear])
                for record in written:
                    dataset_hash.add(record)
                    yield record

        write_records(output / RECORDS_NAME, records())
    return dataset_hash.hexdigest()


def _choose_letters(sources: Sequence[SourceVideo], shards: ShardFolder, settings: BuildSettings) -> Mapping[str, str]:
    """Choose the right letter for each question with options, separately for each split."""
    choice_ids: dict[Split, list[str]] = {split: [] for split in Split}
    for source in sources:
        split = assign_split(source.digest, settings.splits, seed=settings.seed)
        choice_ids[split] += [item.question_id for item in shards.read(source).questions if item.draft.options]
    letters: dict[str, str] = {}
    for ids in choice_ids.values():
        letters.update(balanced_letters(ids, seed=settings.seed))
    return letters


def _write_shard(
    shard: VideoShard, letters: Mapping[str, str], settings: BuildSettings
) -> tuple[list[QuestionRecord], list[Dropped]]:
    """Turn the questions of a video into records, each with its chosen letter."""
    records: list[QuestionRecord] = []
    unclear: list[Dropped] = []
    for item in shard.questions:
        try:
            records.append(_write_record(shard.source, item, letters, settings))
        except UnclearLetterError as error:
            unclear.append(make_dropped("questions", item.question_id, "letters_unclear", str(error)))
    return records, unclear


def _write_record(
    source: SourceVideo, item: DraftedQuestion, letters: Mapping[str, str], settings: BuildSettings
) -> QuestionRecord:
    draft = item.draft
    if draft.options:
        draft = reorder_options(draft, letters[item.question_id], seed=f"{settings.seed}:{item.question_id}")
    return QuestionRecord(
        question_id=item.question_id,
        media=(RecordMedium(path=source.dataset_path, digest=source.digest, duration_seconds=source.duration_seconds),),
        split=assign_split(source.digest, settings.splits, seed=settings.seed),
        skill=item.skill,
        question=draft.question,
        options=draft.options,
        answer=draft.answer,
        evidence=tuple(
            Interval(start_seconds=span.start_seconds, end_seconds=min(span.end_seconds, source.duration_seconds))
            for span in draft.evidence
        ),
        reasoning=draft.reasoning,
        source=settings.source,
        license=settings.license,
    )


def _write_segments(file: TextIO, shard: VideoShard) -> None:
    source = shard.source
    for segment in shard.segments:
        video = {
            "video_path": source.dataset_path,
            "video_digest": source.digest,
            "speech_origin": source.speech_origin,
        }
        _write_line(file, {**video, **segment.model_dump(mode="json")})


def _open(files: ExitStack, path: Path) -> TextIO:
    temporary = files.enter_context(atomic_path(path))
    return files.enter_context(temporary.open("w", encoding="utf-8"))


def _write_line(file: TextIO, value: object) -> None:
    file.write(json.dumps(value, ensure_ascii=False) + "\n")
