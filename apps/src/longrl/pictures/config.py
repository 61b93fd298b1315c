"""The recipe of the world of pictures: captions, pretraining and reinforcement learning in one typed model.

As in the timeline's quickstart, the command fills in folders and seed, and `[rl]` is otherwise an ordinary recipe of
`longrl generate-grpo`. What an algorithm needs besides is in its table, `[algorithms.NAME]`, which counts if that is
chosen.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self, cast

from pydantic import Field, model_validator

from longrl.quickstart.config import fill_in_places
from longrl.stages import RECIPES_FOLDER, read_tables
from longrl_files.messages import visible
from longrl_omni.generation.config.algorithms import ALGORITHMS, AlgorithmName
from longrl_omni.generation.config.recipes import GenerateGrpoConfig
from longrl_omni.generation.pictures.pretraining import PretrainingSettings
from longrl_omni.generation.pictures.prompt_files import HELD_OUT_NAME, PROMPTS_NAME, PictureCaptionSettings
from longrl_trainer.config.recipes import parse_config
from longrl_trainer.config.sections import Section
from longrl_trainer.errors import TrainerUsageError

PICTURES_RECIPE = RECIPES_FOLDER / "pictures.toml"
ACCURACY = "accuracy"
"""The reward that the report calls accuracy; the recipe has it among its rewards, if only to be logged."""


class PicturesConfig(Section):
    """The complete settings, with the paths filled in."""

    output: Path
    """Folder for all output; `--output` of the command."""
    seed: int = Field(ge=0)
    """Determines the captions, the model and the noise; `--seed` of the command."""
    captions: PictureCaptionSettings
    pretraining: PretrainingSettings
    rl: GenerateGrpoConfig

    @model_validator(mode="after")
    def _measures_accuracy(self) -> Self:
        if ACCURACY not in self.rl.rewards:
            raise ValueError(
                f"rl.rewards.{ACCURACY}: missing; the report shows it, so give it a weight, which may be 0"
            )
        return self


def load_pictures(recipe: Path, *, output: Path, seed: int, algorithm: AlgorithmName | None = None) -> PicturesConfig:
    """Read a recipe and fill in the paths below `output`.

    Args:
        recipe: The file.
        output: Folder for all output.
        seed: Determines everything random.
        algorithm: In place of that of `[rl]`.

    Raises:
        TrainerUsageError: A setting is wrong.
    """
    tables = _choose(read_tables(recipe), algorithm, source=str(recipe))
    places = {
        "output": str(output),
        "seed": seed,
        "rl": {
            "output": str(output / "rl"),
            "seed": seed,
            "model": {"folder": str(output / "model")},
            "prompts": str(output / "captions" / PROMPTS_NAME),
            "held_out_prompts": str(output / "captions" / HELD_OUT_NAME),
        },
    }
    return parse_config(fill_in_places(tables, places, source=str(recipe)), PicturesConfig, source=str(recipe))


def _choose(tables: dict[str, Any], algorithm: AlgorithmName | None, *, source: str) -> dict[str, Any]:
    """The tables with those of the chosen algorithm in `[rl]`, and without the others."""
    remaining = {name: table for name, table in tables.items() if name != "algorithms"}
    by_name, shared = tables.get("algorithms", {}), tables.get("rl", {})
    if not isinstance(by_name, dict) or not all(isinstance(table, dict) for table in by_name.values()):
        raise TrainerUsageError(f"{source}: algorithms: expected a table for each algorithm")
    for name in by_name:
        if name not in ALGORITHMS:
            raise TrainerUsageError(
                f"{source}: algorithms.{visible(name, 40)}: there is no such algorithm; expected one of "
                f"{', '.join(ALGORITHMS)}"
            )
    if not isinstance(shared, dict):
        return remaining
    chosen = algorithm or cast(dict[str, Any], shared).get("algorithm")
    own = by_name.get(chosen, {}) if isinstance(chosen, str) else {}
    named = {} if chosen is None else {"algorithm": chosen}
    return remaining | {"rl": _merge(_merge(shared, own), named)}


def _merge(table: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """A table with the values of another one, also in the tables in it."""
    merged = dict(table)
    for name, value in other.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(name), Mapping)
        merged[name] = _merge(merged[name], cast(Mapping[str, Any], value)) if both else value
    return merged
