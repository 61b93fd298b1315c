"""Pictures as PNG files."""

from pathlib import Path

from torch import Tensor

from longrl_omni.generation.evaluation import EvaluatedPictures
from longrl_omni.generation.policies.model_files import save_folder
from longrl_omni.generation.rewards.jpeg import as_bytes


def write_pictures(evaluated: EvaluatedPictures, folder: Path) -> None:
    """Write every picture as `NNNN.png`, in their order; the folder is complete or not there."""

    def write(partial: Path) -> None:
        for number, picture_3HW in enumerate(evaluated.pictures):
            write_png(picture_3HW, partial / f"{number:04d}.png")

    save_folder(folder, write)


def write_png(picture_3HW: Tensor, path: Path) -> None:
    """Write a picture [3, H, W] with values from 0 to 1."""
    from PIL import Image

    Image.fromarray(as_bytes(picture_3HW).numpy()).save(path, format="PNG")
