"""Generated pictures as PNG files, and clips as MP4 files with H.264."""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from longrl_omni.generation.policies.model_files import save_folder
from longrl_omni.generation.rewards.jpeg import as_bytes
from longvideo_reason_data.timeline.rendering import encode_frames

PICTURE_SUFFIX, CLIP_SUFFIX = ".png", ".mp4"


def write_media(media: Sequence[Tensor], frames_per_second: float | None, folder: Path) -> None:
    """Write every picture or clip as `NNNN` and its suffix, in their order; the folder is complete or not there."""

    def write(partial: Path) -> None:
        for number, medium in enumerate(media):
            write_medium(medium, frames_per_second, partial / f"{number:04d}{suffix_of(frames_per_second)}")

    save_folder(folder, write)


def suffix_of(frames_per_second: float | None) -> str:
    """How the files of a model's media end."""
    return PICTURE_SUFFIX if frames_per_second is None else CLIP_SUFFIX


def write_medium(medium: Tensor, frames_per_second: float | None, path: Path) -> None:
    """Write a picture [3, H, W], or a clip [F, 3, H, W] of so many frames per second, with values from 0 to 1."""
    from PIL import Image

    if frames_per_second is None:
        Image.fromarray(as_bytes(medium).numpy()).save(path, format="PNG")
    else:
        encode_frames((as_bytes(frame).numpy() for frame in medium), path, frames_per_second=frames_per_second)
