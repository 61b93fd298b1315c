"""From video files to a dataset: probe, cut, describe, ask, filter, balance, write.

Every item that goes in comes out as kept or as dropped with a reason, at each of three stages: videos, segments and
questions. Nothing is written to the records before everything is known; what was paid for stands in the journal at
once. A build that is killed and started again asks only what was never answered and ends with the same records.
"""

import asyncio
import json
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from longvideo_reason_data.accounts import Accounts, make_manifest
from longvideo_reason_data.atomic_files import atomic_path, write_text_atomic
from longvideo_reason_data.build_settings import BuildSettings
from longvideo_reason_data.dataset_folder import (
    CALLS_NAME,
    DROPPED_NAME,
    MANIFEST_NAME,
    RECORDS_NAME,
    RESPONSES_NAME,
    VIDEOS_NAME,
)
from longvideo_reason_data.errors import DataError, UsageError
from longvideo_reason_data.generation import DraftedQuestion, QuestionWriter, SourceVideo
from longvideo_reason_data.ledger import Ledger
from longvideo_reason_data.option_order import UnclearLetterError, balanced_letters, reorder_options
from longvideo_reason_data.prompt_files import load_prompts
from longvideo_reason_data.records import Interval, QuestionRecord, Split, write_records
from longvideo_reason_data.response_cache import ResponseCache
from longvideo_reason_data.segments import check_segments, fixed_windows
from longvideo_reason_data.splits import assign_split
from longvideo_reason_data.videos import VideoFile, find_videos


def build(
    videos: Sequence[Path],
    output: Path,
    *,
    base_url: str,
    model: str,
    captioner: str | None = None,
    prompts_folder: Path | None = None,
    settings: BuildSettings | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Build a dataset from video files, or go on with one.

    Args:
        videos: Files and folders.
        output: The dataset's folder. Videos are hard-linked into it, or copied from another disk.
        base_url: Address of a server that speaks the OpenAI protocol, up to and including `/v1`.
        model: The reasoner.
        captioner: The model that sees the pictures; the reasoner when not given.
        prompts_folder: Prompts to be used in place of this package's.
        settings: Everything else.
        console: Where progress is shown; standard error when not given.

    Returns:
        The manifest, as it is written.

    Raises:
        UsageError: When there is nothing to build from, or the request makes no sense.
        DataError: When no video can be read, the server is of no use, or the output can't be written.
    """
    settings = settings or BuildSettings()
    captioner = captioner or model
    prices = settings.prices(model, captioner)
    prompts = load_prompts(prompts_folder)
    paths = [path for path in find_videos(videos) if not path.resolve().is_relative_to(output.resolve())]
    if not paths:
        raise UsageError("no videos given outside of the output folder; expected files or folders")
    accounts = Accounts()
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console or Console(stderr=True),
    )
    with (
        ResponseCache(output / RESPONSES_NAME) as cache,
        Ledger(path=output / CALLS_NAME, prices=prices) as ledger,
        progress,
    ):
        sources = _collect_videos(paths, output, settings, accounts, progress)
        writer = QuestionWriter(cache, ledger, prompts, settings, accounts, progress, model=model, captioner=captioner)
        drafted = asyncio.run(writer.run(sources, base_url))
        tokens = cache.total_tokens()
    records = _balance(drafted, settings, accounts)
    write_records(output / RECORDS_NAME, records)
    manifest = make_manifest(records, accounts, ledger, tokens, settings)
    write_text_atomic(output / DROPPED_NAME, accounts.dropped_lines())
    write_text_atomic(output / MANIFEST_NAME, json.dumps(manifest, indent=2) + "\n")
    return manifest


def _collect_videos(
    paths: Sequence[Path], output: Path, settings: BuildSettings, accounts: Accounts, progress: Progress
) -> list[SourceVideo]:
    """Probe the videos, put them into the output folder and cut them."""
    sources: dict[str, SourceVideo] = {}
    bar = progress.add_task("videos", total=len(paths))
    errors: list[DataError] = []
    for path in paths:
        accounts.num_input["videos"] += 1
        try:
            video = VideoFile.open(path)
            digest = video.content_digest
        except DataError as error:
            errors.append(error)
            accounts.drop("videos", str(path), "video_unreadable", str(error))
        else:
            if digest in sources:
                accounts.drop("videos", str(path), "video_duplicate", f"the same file as {sources[digest].video.path}")
            else:
                segments = fixed_windows(video.duration_seconds, window_seconds=settings.window_seconds)
                check_segments(segments, video.duration_seconds)
                accounts.num_input["segments"] += len(segments)
                split = assign_split(digest, settings.splits, seed=settings.seed)
                place = _place_video(path, digest, output)
                sources[digest] = SourceVideo(
                    video=video, digest=digest, dataset_path=place, split=split, segments=segments
                )
        progress.advance(bar)
    if not sources:
        raise DataError(f"none of the {len(paths)} videos can be read; the first: {errors[0]}")
    return list(sources.values())


def _place_video(path: Path, digest: str, output: Path) -> str:
    """Bring a video into the dataset: as a hard link on the same disk, else as a copy. Done once per video."""
    stem = re.sub(r"[^\w.-]+", "_", path.stem)[:60].strip("._") or "video"
    name = f"{VIDEOS_NAME}/{stem}-{digest[:12]}{path.suffix.lower()}"
    target = output / name
    if not (target.exists() and target.stat().st_size == path.stat().st_size):
        with atomic_path(target) as temporary:
            try:
                os.link(path.resolve(), temporary)
            except OSError:
                shutil.copyfile(path, temporary)
    return name


def _balance(drafted: Sequence[DraftedQuestion], settings: BuildSettings, accounts: Accounts) -> list[QuestionRecord]:
    """Put the right answers on all letters alike, in each split, and write the records."""
    records: list[QuestionRecord] = []
    for split in Split:
        group = [item for item in drafted if item.source.split is split]
        letters = balanced_letters([item.question_id for item in group], seed=settings.seed)
        for item in group:
            order_seed = f"{settings.seed}:{item.question_id}"
            try:
                draft = reorder_options(item.draft, letters[item.question_id], seed=order_seed)
            except UnclearLetterError as error:
                accounts.drop("questions", item.question_id, "letters_unclear", str(error))
                continue
            duration = item.source.video.duration_seconds
            records.append(
                QuestionRecord(
                    question_id=item.question_id,
                    video_path=item.source.dataset_path,
                    video_digest=item.source.digest,
                    video_duration_seconds=duration,
                    split=split,
                    skill=item.skill,
                    question=draft.question,
                    options=draft.options,
                    answer=draft.answer,
                    evidence=tuple(
                        Interval(start_seconds=span.start_seconds, end_seconds=min(span.end_seconds, duration))
                        for span in draft.evidence
                    ),
                    reasoning=draft.reasoning,
                    source=settings.source,
                    license=settings.license,
                )
            )
    return sorted(records, key=lambda record: record.question_id)
