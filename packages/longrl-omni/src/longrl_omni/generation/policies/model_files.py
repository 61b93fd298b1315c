"""Folders of models: written completely or not at all, and one clear line where a part of one can't be read."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from longrl_files.messages import visible
from longrl_trainer.durable import make_partial, publish
from longrl_trainer.errors import TrainerError, TrainerUsageError


def save_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Write a folder under a temporary name, then give it its name."""
    partial = make_partial(folder)
    write(partial)
    publish(partial, folder)


@contextmanager
def load_part(folder: Path, part: str) -> Generator[None]:
    """Turn what goes wrong within the block into a line that names the part."""
    try:
        yield
    except (OSError, KeyError, RuntimeError, SafetensorError, TypeError, ValueError) as error:
        raise TrainerError(
            f"`model.folder` = {folder}: {part} can't be loaded ({visible(str(error).splitlines()[0], 160)})"
        ) from error


def refuse_other_sizes(settings: Any, *, height: int, width: int) -> None:
    """Refuse sizes in the recipe other than those of a model that has only one.

    Raises:
        TrainerUsageError: They differ.
    """
    for name, found, expected in (("height", settings.height, height), ("width", settings.width, width)):
        if found not in (None, expected):
            raise TrainerUsageError(f"sampling.{name} = {found}: expected {expected}, the only one of this model")
