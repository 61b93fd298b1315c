"""`longrl encode`: encode videos into the embedding store, with a line for every one that can't be used."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from longrl.errors import AppError
from longrl_files.messages import error_line
from longrl_trainer.config.sections import FrameSettings, ModelSection
from longvideo_reason_data.errors import DataError
from longvideo_reason_data.media.containers import find_videos
from longvideo_reason_data.media.video_file import VideoFile
from mrsp_engine.errors import EngineError, UnfitMediumError

if TYPE_CHECKING:
    from mrsp_engine.embeddings.reference import MediaReference
    from mrsp_engine.families.base import Policy


def encode_videos(paths: Sequence[Path], model: ModelSection, frames: FrameSettings) -> None:
    """Encode what can be encoded.

    Raises:
        AppError: A video can't be used; the others are still encoded. Or the disk takes no more.
    """
    failures: list[DataError | EngineError] = []
    videos: list[VideoFile] = []
    for path in find_videos(paths):  # probing needs no model: mistakes are reported before one is loaded
        try:
            videos.append(VideoFile.open(path))
        except DataError as error:
            failures.append(error)
    if videos:
        failures += _encode(videos, model, frames)
    if len(failures) == 1 == len(videos) + len(failures):
        raise failures[0]
    if failures:
        _tell(failures)
        raise AppError(f"{len(failures)} of {len(failures) + len(videos)} videos can't be used")


def _encode(videos: list[VideoFile], model: ModelSection, frames: FrameSettings) -> list[DataError | EngineError]:
    """Encode probed videos; those that can't be used or stored are removed from the list and reported."""
    from longrl.progress import choose_progress
    from longrl_trainer.questions.frames import frame_budget, plan_frames, resolve_frames
    from longrl_trainer.training.opening import open_policy
    from mrsp_engine.encoding.video import FileVideo

    policy = open_policy(model, "float32")
    policy.freeze_vision()
    frames = resolve_frames(frames, model.folder)
    encoder, budget = policy.encoder, frame_budget(frames)
    before = policy.store.disk.count_encodes()
    failures: list[DataError | EngineError] = []
    stored: list[VideoFile] = []
    is_full = False
    with choose_progress().task("Encode videos", total=len(videos)) as bar:
        for video in videos:
            try:
                known = FileVideo(video, video.path, policy.store.digests)
                chosen = plan_frames(video, frames)
                if encoder is not None:
                    _check_length(policy, encoder.plan(known, chosen, budget=budget).reference)
                entry = policy.store.path(policy.encode_video(known, chosen, budget=budget).key)
            except DataError as error:
                failures.append(error)
            except UnfitMediumError as error:
                failures.append(UnfitMediumError(f"{video.path}: {error}"))
            except EngineError:
                is_full = policy.store.is_disk_refusing
                if not is_full:
                    raise
            else:
                if entry.is_file():
                    stored.append(video)
                else:
                    is_full = True
            if is_full:  # the rest would be encoded for nothing
                break
            bar.advance()
    stats = policy.store.stats()
    new = policy.store.disk.count_encodes() - before
    print(
        f"{len(stored)} videos, {new} newly encoded; {model.store} holds {stats.entries} embeddings, "
        f"{stats.bytes / 1e6:.1f} MB"
    )
    if is_full:
        _tell(failures)
        raise AppError(
            f"{model.store}: the disk takes no more, {len(stored)} of {len(videos)} videos are stored; free space "
            "there or choose another folder with --store, and run it again"
        )
    videos[:] = stored
    return failures


def _tell(failures: Sequence[DataError | EngineError]) -> None:
    for failure in failures:
        print(error_line(failure, "dropped"), file=sys.stderr)


def _check_length(policy: "Policy", medium: "MediaReference") -> None:
    """Refuse a video that no question could be asked about, before it is encoded.

    Raises:
        UnfitMediumError: It is longer than the model's number of positions.
    """
    positions, tokens = policy.prompt_positions("", [medium]), policy.prompt_length("", [medium])
    if positions > policy.max_positions:
        cure = "lower --num-frames or --max-frames, or set --frame-pixels"
        raise UnfitMediumError(
            f"a prompt with this video takes {positions} positions, more than the {policy.max_positions} that the "
            f"model was trained for; {cure if positions <= tokens else 'take shorter videos'}"
        )
