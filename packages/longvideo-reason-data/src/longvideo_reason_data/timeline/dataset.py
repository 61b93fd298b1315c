"""Writes a dataset of timeline worlds: rendered videos and their questions, in splits that share no video.

Every world is drawn from its own name (seed, split, number), so one more video changes no other. A video's file name
contains a digest of its content; an existing file with that name is kept, so an interrupted rendering continues where
it stopped.
"""

import hashlib
import json
import multiprocessing
import os
import random
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path

from longvideo_reason_data.errors import UsageError
from longvideo_reason_data.ownership import own_folder
from longvideo_reason_data.records.answers import LETTERS
from longvideo_reason_data.records.medium import RecordMedium
from longvideo_reason_data.records.record import Demonstration, QuestionRecord, Split, write_records
from longvideo_reason_data.timeline.questions import create_questions, deal_letters
from longvideo_reason_data.timeline.rendering import write_video
from longvideo_reason_data.timeline.world import World, WorldSettings, create_world

SOURCE = "timeline world"
HASTY_REASONING = "I did not watch, this is a guess."
LICENSE = "CC0-1.0"
RENDERING_VERSION = 1  # increase when the same world would be drawn differently

Progress = Callable[[int, int], None]


def write_timeline_dataset(
    output: Path,
    settings: WorldSettings,
    *,
    videos: Mapping[Split, int],
    questions_per_video: int,
    seed: int,
    hasty_fraction: float = 0.0,
    progress: Progress | None = None,
) -> list[QuestionRecord]:
    """Render `videos[split]` worlds for each split and write `output/records.parquet` next to `output/videos/`.

    Args:
        output: The dataset's folder.
        settings: Length and difficulty of every world.
        videos: Number of videos by split.
        questions_per_video: Maximum number of questions about each; a simple story may have fewer.
        seed: Changes every world.
        hasty_fraction: Share of the SFT demonstrations that guess without watching and say so. Imitation copies this
            habit, reward removes it. They are marked in `demonstration`; no other split has any.
        progress: Called with the number of finished videos and the total.

    Raises:
        UsageError: When no video is requested, or another process is using the folder.
        DataError: When something can't be written.
    """
    worlds = {
        split: [create_world(f"{seed}/{split}/{number}", settings) for number in range(count)]
        for split, count in videos.items()
    }
    paths = {
        world.name: output / "videos" / f"{split}-{number:05d}-{_digest(world)[:12]}.mp4"
        for split, members in worlds.items()
        for number, world in enumerate(members)
    }
    if not paths:
        raise UsageError(f"{sum(videos.values())} videos requested: expected at least one; set --videos")
    with own_folder(output):
        everything = [world for members in worlds.values() for world in members]
        file_digests = _render([(world, paths[world.name]) for world in everything], progress)
        records = [
            record
            for split, members in worlds.items()
            for record in _records(split, members, paths, file_digests, questions_per_video, seed, hasty_fraction)
        ]
        write_records(output / "records.parquet", records)
        return records


def _digest(world: World) -> str:
    settings = world.settings.model_dump(exclude={"sound"})
    drawn: list[object] = [RENDERING_VERSION, settings, world.shapes, [asdict(scene) for scene in world.scenes]]
    if world.pitches:
        drawn.append(world.pitches)
    return hashlib.sha256(json.dumps(drawn).encode()).hexdigest()


def _render(jobs: list[tuple[World, Path]], progress: Progress | None) -> dict[str, str]:
    """Render missing videos on all cores; returns the SHA-256 of each world's file by its name."""
    num_workers = min(len(os.sched_getaffinity(0)), len(jobs))
    context = multiprocessing.get_context("spawn")
    digests: dict[str, str] = {}
    with ProcessPoolExecutor(num_workers, mp_context=context, initializer=_leave_with_parent) as pool:
        for (world, _), digest in zip(jobs, pool.map(_render_one, jobs, chunksize=4), strict=True):
            digests[world.name] = digest
            if progress is not None:
                progress(len(digests), len(jobs))
    return digests


def _leave_with_parent() -> None:
    """Make a worker end when its parent is killed; otherwise it would wait for work forever."""
    parent = multiprocessing.parent_process()

    def wait_and_leave() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait_and_leave, daemon=True).start()


def _render_one(job: tuple[World, Path]) -> str:
    world, path = job
    if not path.exists():
        write_video(world, path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _records(
    split: Split,
    worlds: list[World],
    paths: Mapping[str, Path],
    file_digests: Mapping[str, str],
    questions_per_video: int,
    seed: int,
    hasty_fraction: float,
) -> list[QuestionRecord]:
    letters = deal_letters(f"{seed}/{split}")
    records = [
        QuestionRecord(
            question_id=f"{split}-{number:05d}-{index}",
            media=(
                RecordMedium(
                    path=f"videos/{paths[world.name].name}",
                    digest=file_digests[world.name],
                    duration_seconds=world.settings.seconds,
                ),
            ),
            split=split,
            skill=question.skill,
            question=question.question,
            options=question.options,
            answer=question.answer,
            senses=question.senses,
            evidence=question.evidence,
            reasoning=question.reasoning,
            source=SOURCE,
            license=LICENSE,
        )
        for number, world in enumerate(worlds)
        for index, question in enumerate(create_questions(world, letters, questions_per_video))
    ]
    return _mix_in_guesses(records, hasty_fraction, seed) if split is Split.TRAIN_SFT else records


def _mix_in_guesses(records: list[QuestionRecord], hasty_fraction: float, seed: int) -> list[QuestionRecord]:
    generator = random.Random(f"hasty {seed}")
    return [
        QuestionRecord.model_validate(
            record.model_dump()
            | {
                "answer": generator.choice(LETTERS[: len(record.options)]),
                "reasoning": HASTY_REASONING,
                "demonstration": Demonstration.GUESSED,
            }
        )
        if generator.random() < hasty_fraction
        else record
        for record in records
    ]
