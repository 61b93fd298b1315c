"""The recipes in a folder of `longrl start`, read with the strict models and held to the folder's places."""

from pathlib import Path
from typing import Any

from longrl.errors import AppUsageError
from longrl.footage.recipes import EVALUATE_NAME, GRPO_NAME, SFT_NAME, FootagePlaces
from longrl_trainer.config.recipes import load_recipe
from longrl_trainer.config.sections import Section
from longrl_trainer.config.stages import EvaluateConfig, GrpoConfig, SftConfig

__all__ = ["FootageConfig", "load_footage"]


class FootageConfig(Section):
    """The settings of all stages of training on one's own videos."""

    sft: SftConfig
    grpo: GrpoConfig
    evaluate: EvaluateConfig

    @property
    def num_frames(self) -> int:
        """Frames at which all models are compared."""
        return self.evaluate.data.num_frames or 0

    def as_json(self) -> dict[str, Any]:
        """Plain values, with what the report looks for."""
        asked = {"num_frames": [self.num_frames], "temperature": self.evaluate.temperature}
        return self.model_dump(mode="json") | {"seed": self.grpo.seed, "evaluation": asked}


def load_footage(places: FootagePlaces) -> FootageConfig:
    """Read the recipes of a folder.

    Raises:
        TrainerUsageError: One can't be read, or is wrong.
        AppUsageError: One names another place than its stage works in, or no number of frames.
    """
    paths = {name: places.output / name for name in (SFT_NAME, GRPO_NAME, EVALUATE_NAME)}
    sft = load_recipe(paths[SFT_NAME], SftConfig)
    grpo = load_recipe(paths[GRPO_NAME], GrpoConfig)
    evaluate = load_recipe(paths[EVALUATE_NAME], EvaluateConfig)
    for name, config, model in (
        (SFT_NAME, sft, places.model),
        (GRPO_NAME, grpo, places.sft / "model"),
        (EVALUATE_NAME, evaluate, places.grpo / "model"),
    ):
        _require_places(
            paths[name],
            {
                "model.folder": (config.model.folder, model),
                "model.store": (config.model.store, places.store),
                "data.dataset": (config.data.dataset, places.dataset),
            },
        )
        if config.data.num_frames is None:
            raise AppUsageError(f"{paths[name]}: data.num_frames is missing; `longrl start` compares at a fixed number")
    for name, config, output in ((SFT_NAME, sft, places.sft), (GRPO_NAME, grpo, places.grpo)):
        _require_places(paths[name], {"output": (config.output, output)})
    return FootageConfig(sft=sft, grpo=grpo, evaluate=evaluate)


def _require_places(recipe: Path, pairs: dict[str, tuple[Path, Path]]) -> None:
    for setting, (found, expected) in pairs.items():
        if found.resolve() != expected.resolve():
            raise AppUsageError(
                f"{recipe}: {setting} is {found}, and `longrl start` works in {expected}; write that, or remove the "
                "recipe to have it written anew"
            )
