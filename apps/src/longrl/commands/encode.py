"""`longrl encode`: videos into the embedding store, with a line for every one that can't be used."""

import sys
from collections.abc import Sequence
from pathlib import Path

from longrl.errors import AppError, AppUsageError
from longvideo_reason_data.errors import DataError
from longvideo_reason_data.media.containers import find_videos
from longvideo_reason_data.media.video_file import VideoFile, sample_frames


def encode_videos(paths: Sequence[Path], model: Path, store: Path, num_frames: int) -> None:
    """Encode what can be encoded.

    Raises:
        AppError: When a video can't be used; the others are encoded all the same.
    """
    if num_frames < 1:
        raise AppUsageError(f"--num-frames {num_frames}: expected 1 or more")
    failures: list[DataError] = []
    videos: list[VideoFile] = []
    for path in find_videos(paths):  # probing takes no model: mistakes show before one is loaded
        try:
            videos.append(VideoFile.open(path))
        except DataError as error:
            failures.append(error)
    if videos:
        failures += _encode(videos, model, store, num_frames)
    if len(failures) == 1 == len(videos) + len(failures):
        raise failures[0]
    if failures:
        for failure in failures:
            print(f"dropped: {failure}", file=sys.stderr)
        raise AppError(f"{len(failures)} of {len(failures) + len(videos)} videos can't be used")


def _encode(videos: list[VideoFile], model: Path, store: Path, num_frames: int) -> list[DataError]:
    """Encode probed videos; those that can't be decoded are taken out of the list and reported."""
    from longrl.progress import choose_progress
    from longrl_trainer.config.sections import ModelSection
    from longrl_trainer.training.opening import open_policy
    from mrsp_engine.encoding.video import FileVideo

    policy = open_policy(ModelSection(folder=model, store=store), "float32")
    policy.freeze_vision()
    before = policy.store.counters.encodes
    failures: list[DataError] = []
    with choose_progress().task("Encode videos", total=len(videos)) as bar:
        for video in list(videos):
            try:
                known = FileVideo(video, video.path, policy.store.digests)
                policy.encode_video(known, sample_frames(video, num_frames=num_frames))
            except DataError as error:
                failures.append(error)
                videos.remove(video)
            bar.advance()
    stats = policy.store.stats()
    new = policy.store.counters.encodes - before
    print(
        f"{len(videos)} videos, {new} newly encoded; {store} holds {stats.entries} embeddings, "
        f"{stats.bytes / 1e6:.1f} MB"
    )
    return failures
