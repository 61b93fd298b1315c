"""Which frames of a video are shown, and how large: from a recipe's settings to a plan, the same for every stage.

A preset fills in what a recipe doesn't set: the values of a published training, or those in the checkpoint's own files.
The recipe's own settings take precedence.
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
"""Maximum pixels of a Qwen2.5-VL frame in the published code of LongVILA-R1 (arXiv 2507.07966)."""

PRESETS: Mapping[PresetName, Mapping[str, Any]] = {
    "longvila_r1": {"num_frames": 256, "frame_pixels": PAPER_FRAME_PIXELS},
    "longvila_r1_hour": {"fps": 1.0, "max_frames": 3600, "frame_pixels": PAPER_FRAME_PIXELS},
}
"""The values of the published trainings, by name; `checkpoint` is read from the checkpoint's files."""

_COUNTS = frozenset({"num_frames", "fps", "min_frames", "max_frames"})


def resolve_frames(settings: SettingsT, model_folder: Path) -> SettingsT:
    """The same settings with the preset's values for what isn't set.

    Raises:
        TrainerUsageError: The checkpoint specifies no number of frames.
    """
    if settings.preset is None:
        return settings
    values = PRESETS.get(settings.preset) or read_published_frames(model_folder)
    typed = {name for name in values if getattr(settings, name) is not None}
    if settings.num_frames is not None or settings.fps is not None:
        # The recipe's own number of frames replaces the preset's; bounds belong to a rate.
        typed |= {"num_frames", "fps"} | (_COUNTS if settings.num_frames is not None else set())
    resolved = settings.model_copy(
        update={name: value for name, value in values.items() if name not in typed} | {"preset": None}
    )
    if resolved.num_frames is None and resolved.fps is None:
        raise TrainerUsageError(
            f'data.preset="{settings.preset}": the files in {model_folder} specify neither a number of frames nor a '
            "rate; set data.num_frames or data.fps too"
        )
    return resolved


def plan_frames(video: FrameTimes, settings: FrameSettings) -> tuple[int, ...]:
    """The frames of a video to show, for settings without a preset."""
    return sample_frames(
        video,
        num_frames=settings.num_frames,
        frames_per_second=settings.fps,
        min_frames=settings.min_frames,
        max_frames=settings.max_frames,
    )


def frame_budget(settings: FrameSettings) -> FrameBudget:
    """Their size limits."""
    return FrameBudget(frame_pixels=settings.frame_pixels, video_tokens=settings.video_tokens)


def describe_frames(settings: FrameSettings) -> str:
    """A short description for a progress bar."""
    if settings.num_frames is not None:
        return f"{settings.num_frames} frames"
    return f"{settings.fps:g} frames per second" if settings.fps is not None else f"frames of {settings.preset}"
