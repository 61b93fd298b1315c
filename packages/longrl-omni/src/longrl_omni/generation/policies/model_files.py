"""Folders of models: looked at before a library opens them, and written completely or not at all.

Pipelines are downloaded, and diffusers opens whatever it finds in their folders, imports the modules that
`model_index.json` names, and builds what a configuration asks for. So every file is checked first, as
`mrsp_engine.families.checkpoint_folder` does for language models, and no part is built that is larger than its weights.
"""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import Any, cast

from torch import nn

from longrl_files.folders import ForeignFolder
from longrl_files.messages import visible
from longrl_omni.generation.config.recipes import SamplingSection
from longrl_omni.generation.model_parts import WEIGHTS, load_part, quiet_libraries, refuse_large_network
from longrl_trainer.durable import make_partial, publish
from longrl_trainer.errors import TrainerUsageError
from mrsp_engine.families.checkpoint_folder import MOST_VOCABULARY_BYTES, CheckpointFolder

INDEX_NAME = "model_index.json"
"""The file by which diffusers' pipelines, and models of this package, say what they are."""
_LIBRARIES = ("diffusers", "transformers")
_WEIGHT_INDEX = ".safetensors.index"


def admit_pipeline(folder: Path) -> dict[str, Any]:
    """Check everything in a model's folder that a library may open.

    Returns:
        What `model_index.json` says.

    Raises:
        TrainerUsageError: There is no such folder, or a file in it doesn't belong there.
        EngineUsageError: So it is with a file of weights.
    """
    if not folder.is_dir():
        raise TrainerUsageError(f"`model.folder` = {folder}: there is no such folder")
    files = ForeignFolder(
        folder, error=TrainerUsageError, link_cure="put the file itself there, or set another `model.folder`"
    )
    if not files.has(INDEX_NAME):
        raise TrainerUsageError(f"`model.folder` = {folder}: has no {INDEX_NAME}, which says what it is")
    for name in files.files(skips=lambda inner: PurePosixPath(inner).name.startswith(".")):
        place = PurePosixPath(name)
        part = CheckpointFolder(folder / place.parent)
        if place.suffix == ".json" and not isinstance(files.read_json(name, max_bytes=MOST_VOCABULARY_BYTES), dict):
            # diffusers takes a text in the place of a configuration for the name of a repository, and asks for that.
            raise TrainerUsageError(f"`model.folder` = {folder}: {visible(name, 80)} is no JSON object")
        if place.suffix == ".json" and _WEIGHT_INDEX in place.name:
            part.indexed(place.name)
        elif place.suffix == WEIGHTS:
            part.count_in(place.name)
    return read_index(folder)


def read_index(folder: Path) -> dict[str, Any]:
    """What `model_index.json` in an admitted folder says."""
    return cast(dict[str, Any], ForeignFolder(folder, error=TrainerUsageError).read_json(INDEX_NAME))


def refuse_large_parts(folder: Path, parts: dict[str, Any]) -> None:
    """Refuse parts of a pipeline from other libraries, and those whose configuration asks for more than their weights.

    Args:
        folder: The pipeline's folder, which is admitted.
        parts: What its index says; a part is a list of a library and a class there.

    Raises:
        TrainerError: There is such a part.
    """
    for name, part in parts.items():
        if not isinstance(part, list) or part == [None, None]:
            continue
        library, class_name = (*cast(list[object], part), None, None)[:2]
        if library not in _LIBRARIES or not isinstance(class_name, str):
            raise TrainerUsageError(
                f"`model.folder` = {folder}: {INDEX_NAME} takes the part {visible(name, 40)} from "
                f"{visible(repr(library), 40)}, expected {' or '.join(_LIBRARIES)}; no code of a checkpoint is run"
            )
        kind = getattr(import_module(str(library)), class_name, None)
        if isinstance(kind, type) and issubclass(kind, nn.Module):
            refuse_large_part(folder / name, kind)


def refuse_large_part(folder: Path, kind: Any) -> None:
    """Refuse a network that would be larger than the weights beside its configuration, before memory is taken for it.

    Args:
        folder: Of the network.
        kind: The network's class in diffusers or transformers.

    Raises:
        TrainerError: It is larger, or can't be built.
    """
    with load_part(folder.parent, folder.name):
        refuse_large_network(folder, kind)


def save_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Write a folder under a temporary name, then give it its name; libraries are quiet about it."""
    partial = make_partial(folder)
    with quiet_libraries():
        write(partial)
    publish(partial, folder)


def refuse_other_settings(settings: SamplingSection, **expected: float) -> None:
    """Refuse settings of sampling other than the only ones of a model.

    Raises:
        TrainerUsageError: They differ.
    """
    for name, value in expected.items():
        found = getattr(settings, name)
        if found not in (None, value):
            raise TrainerUsageError(f"sampling.{name} = {found:g}: expected {value:g}, the only one of this model")
