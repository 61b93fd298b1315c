"""The video that a prediction is made for: a constant rate, and the frames of it that a run would show."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from longrl.errors import AppUsageError
from longrl_trainer.config.sections import FrameSettings

if TYPE_CHECKING:
    from mrsp_engine.planner.videos import PlannedVideo

__all__ = ["plan_video"]


@dataclass(frozen=True)
class _ConstantRate:
    """A video with a constant frame rate, with only what planning its frames needs."""

    frame_count: int
    timestamps: NDArray[np.float64]
    duration_seconds: float


def plan_video(
    shown: FrameSettings, model: str, height: int, width: int, seconds: float | None, fps: float
) -> "PlannedVideo":
    """The frames of such a video that a run would show.

    Args:
        shown: How frames are chosen.
        model: Name of a public checkpoint, or its folder.
        height: Height of the frames in pixels.
        width: Their width.
        seconds: Length of the video; one second per frame if None.
        fps: Frames per second of the file.

    Raises:
        AppUsageError: A size is not above 0, or the number of frames follows from nothing.
    """
    from longrl_trainer.questions.frames import frame_budget, plan_frames, resolve_frames
    from mrsp_engine.planner.videos import PlannedVideo

    if not shown.counts_frames:
        raise AppUsageError("--frames is missing; set it, or --fps or --preset")
    for name, value in (("height", height), ("width", width), ("fps", fps), ("seconds", seconds)):
        if value is not None and value <= 0:
            raise AppUsageError(f"--video-{name} {value}: expected more than 0")
    settings = resolve_frames(shown, Path(model))
    if seconds is None:
        if settings.num_frames is None:
            raise AppUsageError(f"--fps {settings.fps:g} needs the length of the videos; set --video-seconds")
        seconds, fps = float(settings.num_frames), max(fps, 1.0)
    count = max(1, round(seconds * fps))
    video = _ConstantRate(count, np.arange(count) / fps, count / fps)
    times = tuple(float(video.timestamps[index]) for index in plan_frames(video, settings))
    return PlannedVideo(height=height, width=width, seconds=times, budget=frame_budget(settings))
