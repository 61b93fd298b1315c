"""Where the shipped recipes are, and which command a recipe is for, by the settings in it. Imports nothing heavy."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from longrl.errors import AppUsageError
from longrl_omni.generation.config.recipes import GenerateConfig, GenerateGrpoConfig
from longrl_trainer.config.benchmarks import BenchmarkConfig
from longrl_trainer.config.recipes import load_recipe
from longrl_trainer.config.stages import EvaluateConfig, GrpoConfig, SftConfig

__all__ = ["RECIPES_FOLDER", "CommandName", "RecipeConfig", "command_of", "model_of", "read_tables"]

RECIPES_FOLDER = Path(__file__).parents[2] / "recipes"

CommandName = Literal["sft", "grpo", "evaluate", "generate", "generate-grpo", "quickstart"]
RecipeConfig = SftConfig | GrpoConfig | EvaluateConfig | BenchmarkConfig | GenerateConfig | GenerateGrpoConfig


class AnyTables(BaseModel):
    """Any TOML file."""

    model_config = ConfigDict(extra="allow")


def read_tables(recipe: Path) -> dict[str, Any]:
    """The settings of a recipe as they stand in it.

    Raises:
        TrainerUsageError: It can't be read.
    """
    return load_recipe(recipe, AnyTables).model_extra or {}


def command_of(tables: Mapping[str, Any]) -> CommandName:
    """The command that a recipe with these settings is for."""
    names = tables.keys()
    if names & {"world", "captions"}:
        return "quickstart"
    trains = bool(names & {"steps", "learning_rate"})
    if "prompts" in names:
        return "generate-grpo" if trains else "generate"
    if "benchmark" in names or (names <= EvaluateConfig.model_fields.keys() and not trains):
        return "evaluate"
    is_grpo = len(names & GrpoConfig.model_fields.keys()) > len(names & SftConfig.model_fields.keys())
    return "grpo" if is_grpo else "sft"


def model_of(command: CommandName, tables: Mapping[str, Any]) -> type[RecipeConfig]:
    """The model of the settings of a command's recipes.

    Raises:
        AppUsageError: It has none.
    """
    if command == "quickstart":
        raise AppUsageError("a recipe of `longrl quickstart`, which is several stages; start it with that command")
    if command == "evaluate":
        return BenchmarkConfig if "benchmark" in tables else EvaluateConfig
    models: dict[str, type[RecipeConfig]] = {
        "sft": SftConfig,
        "grpo": GrpoConfig,
        "generate": GenerateConfig,
        "generate-grpo": GenerateGrpoConfig,
    }
    return models[command]
