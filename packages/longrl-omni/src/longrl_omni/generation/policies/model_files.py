"""Folders of models: written completely or not at all, and one clear line where a part of one can't be read."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from longrl_files.messages import visible
from longrl_omni.generation.config.recipes import SamplingSection
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


def refuse_other_settings(settings: SamplingSection, **expected: float) -> None:
    """Refuse settings of sampling other than the only ones of a model.

    Raises:
        TrainerUsageError: They differ.
    """
    for name, value in expected.items():
        found = getattr(settings, name)
        if found not in (None, value):
            raise TrainerUsageError(f"sampling.{name} = {found:g}: expected {value:g}, the only one of this model")
