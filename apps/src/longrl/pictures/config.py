"""The recipe of the world of pictures: captions, pretraining and reinforcement learning in one typed model.

As in the timeline's quickstart, the command fills in folders and seed, and `[rl]` is otherwise an ordinary recipe of
`longrl generate-grpo`.
"""

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from longrl.quickstart.config import fill_in_places
from longrl.stages import RECIPES_FOLDER, read_tables
from longrl_omni.generation.config.recipes import GenerateGrpoConfig
from longrl_omni.generation.pictures.pretraining import PretrainingSettings
from longrl_omni.generation.pictures.prompt_files import HELD_OUT_NAME, PROMPTS_NAME, PictureCaptionSettings
from longrl_trainer.config.recipes import parse_config
from longrl_trainer.config.sections import Section

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


def load_pictures(recipe: Path, *, output: Path, seed: int) -> PicturesConfig:
    """Read a recipe and fill in the paths below `output`."""
    tables = read_tables(recipe)
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
