"""The shipped recipes, and for every one that trains the published model it is for, and a small checkpoint like it."""

from dataclasses import dataclass
from pathlib import Path

from longrl.stages import RECIPES_FOLDER, CommandName, command_of, read_tables
from mrsp_engine.tiny.families import build_tiny
from mrsp_engine.tiny.published import PUBLISHED_KINDS, write_published


@dataclass(frozen=True)
class RecipeModel:
    """The model's name, and the layout of the small one."""

    published: str
    kind: str

    def write_small(self, folder: Path) -> None:
        if self.kind in PUBLISHED_KINDS:
            write_published(self.kind, folder)
        else:
            build_tiny(self.kind, folder)  # in its published layout too


MODELS = {
    "longvila_r1_7b": RecipeModel("LongVILA-R1-7B", "longvila_r1_7b"),
    "nvila_8b_video": RecipeModel("NVILA-8B-Video", "nvila_8b"),
    "qwen2_5_omni_7b": RecipeModel("Qwen2.5-Omni-7B", "qwen2_5_omni"),
    "qwen2_5_vl_3b": RecipeModel("Qwen2.5-VL-3B", "qwen2_5_vl_3b"),
    "qwen2_5_vl_7b": RecipeModel("Qwen2.5-VL-7B", "qwen2_5_vl_7b"),
    "qwen3_5_2b": RecipeModel("Qwen3.5-2B", "qwen3_5_27b"),
    "qwen3_text": RecipeModel("Qwen3-1.7B", "qwen3_4b"),
    "qwen3_vl_8b": RecipeModel("Qwen3-VL-8B", "qwen3_vl_8b"),
}
"""By how the recipes' names begin."""
RECIPES = sorted(RECIPES_FOLDER.glob("*.toml"))
TRAINING = ("sft", "grpo")


def command_in(recipe: Path) -> CommandName:
    return command_of(read_tables(recipe))


def model_in(recipe: Path) -> RecipeModel:
    """The model of a recipe; a new recipe of another one needs an entry in `MODELS`."""
    return next(model for beginning, model in MODELS.items() if recipe.stem.startswith(beginning))


def training_recipes() -> list[Path]:
    return [recipe for recipe in RECIPES if command_in(recipe) in TRAINING]
