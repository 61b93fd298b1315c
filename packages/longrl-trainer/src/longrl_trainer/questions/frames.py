"""Which frames of a video are shown, and how large: from the settings of a recipe to a plan, the same for every stage.

What a recipe leaves open a preset fills in: the values of a published training, or those that the checkpoint's own
files name. What a recipe sets itself always counts.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from longrl_trainer.config.sections import FrameSettings, PresetName
from longrl_trainer.errors import TrainerUsageError
from longvideo_reason_data.media.video_file import FrameTimes, sample_frames
from mrsp_engine.encoding.frame_budget import FrameBudget
from mrsp_engine.families.published_frames import read_published_frames

SettingsT = TypeVar("SettingsT", bound=FrameSettings)

PAPER_FRAME_PIXELS = 128 * 28 * 28
"""What the published code of LongVILA-R1 (arXiv 2507.07966) allows a frame of Qwen2.5-VL."""

PRESETS: Mapping[PresetName, Mapping[str, Any]] = {
    "longvila_r1": {"num_frames": 256, "frame_pixels": PAPER_FRAME_PIXELS},
    "longvila_r1_hour": {"fps": 1.0, "max_frames": 3600, "frame_pixels": PAPER_FRAME_PIXELS},
}
"""By name, the values of the published trainings; `checkpoint` is read from the checkpoint's files."""

_COUNTS = frozenset({"num_frames", "fps", "min_frames", "max_frames"})


def resolve_frames(settings: SettingsT, model_folder: Path) -> SettingsT:
    """The same settings with the preset's values in place of what isn't set.

    Raises:
        TrainerUsageError: The checkpoint names no number of frames.
    """
    if settings.preset is None:
        return settings
    values = PRESETS.get(settings.preset) or read_published_frames(model_folder)
    typed = {name for name in values if getattr(settings, name) is not None}
    if settings.num_frames is not None or settings.fps is not None:
        # A number of frames of one's own takes the place of the preset's; bounds go with a rate.
        typed |= {"num_frames", "fps"} | (_COUNTS if settings.num_frames is not None else set())
    resolved = settings.model_copy(
        update={name: value for name, value in values.items() if name not in typed} | {"preset": None}
    )
    if resolved.num_frames is None and resolved.fps is None:
        raise TrainerUsageError(
            f'data.preset="{settings.preset}": the files in {model_folder} name neither a number of frames nor a '
            "rate; set data.num_frames or data.fps too"
        )
    return resolved


def plan_frames(video: FrameTimes, settings: FrameSettings) -> tuple[int, ...]:
    """The frames of a video that are shown, by settings without a preset."""
    return sample_frames(
        video,
        num_frames=settings.num_frames,
        frames_per_second=settings.fps,
        min_frames=settings.min_frames,
        max_frames=settings.max_frames,
    )


def frame_budget(settings: FrameSettings) -> FrameBudget:
    """How large they may be."""
    return FrameBudget(frame_pixels=settings.frame_pixels, video_tokens=settings.video_tokens)


def describe_frames(settings: FrameSettings) -> str:
    """A few words for a progress bar."""
    if settings.num_frames is not None:
        return f"{settings.num_frames} frames"
    return f"{settings.fps:g} frames per second" if settings.fps is not None else f"frames of {settings.preset}"
