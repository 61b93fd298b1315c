"""What to rehearse: a recipe, on how many devices, with which videos. Imports nothing heavy."""

from dataclasses import dataclass
from pathlib import Path

from longrl.errors import AppUsageError
from longrl.quickstart.config import load_quickstart
from longrl.stages import command_of, read_tables
from longrl.tiny_model import TinyModelSettings
from longrl_trainer.config.recipes import load_recipe
from longrl_trainer.config.stages import GrpoConfig, SftConfig

__all__ = ["RehearsedStage", "RehearsedVideos", "StepLimits", "read_stages"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RehearsedVideos:
    """The videos of the rehearsal.

    Attributes:
        height: Rows of the files' frames.
        width: Their columns.
        seconds: Length; one second per frame if None.
        fps: Frames per second of the files.
    """

    height: int
    width: int
    seconds: float | None
    fps: float

    def __post_init__(self) -> None:
        for name in ("height", "width", "fps", "seconds"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise AppUsageError(f"--video-{name} {value}: expected more than 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class StepLimits:
    """How much of a step is rehearsed.

    Attributes:
        num_layers: Layers of the model; all if None.
        num_rows: Rows of the step; two for every data rank if None, because all further ones are like the second.
        response_tokens: Tokens of a response that is imitated.
    """

    num_layers: int | None
    num_rows: int | None
    response_tokens: int

    def __post_init__(self) -> None:
        for name in ("num_layers", "num_rows", "response_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise AppUsageError(f"--{name.removeprefix('num_').replace('_', '-')} {value}: expected 1 or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class RehearsedStage:
    """One stage of training.

    Attributes:
        name: "sft" or "grpo".
        config: Its settings.
        model: Name or folder of its model; None for the quickstart's own.
        tiny_model: Sizes of the quickstart's own model.
    """

    name: str
    config: SftConfig | GrpoConfig
    model: str | None
    tiny_model: TinyModelSettings | None = None

    def __post_init__(self) -> None:
        sharding = self.config.sharding
        if sharding.kind in ("zero2", "zero3"):
            raise AppUsageError(
                f'sharding.kind="{sharding.kind}": what DeepSpeed does can\'t be rehearsed; expected "none" or "fsdp2"'
            )
        if sharding.offload != "none":
            raise AppUsageError(f'sharding.offload="{sharding.offload}" can\'t be rehearsed; expected "none"')


def read_stages(recipe: Path, model: str | None) -> list[RehearsedStage]:
    """The stages of training in a recipe: one, or both of the quickstart's.

    Args:
        recipe: A TOML file.
        model: Name or folder of a checkpoint to use instead of the recipe's.

    Raises:
        TrainerUsageError: It isn't a recipe.
        AppUsageError: It trains nothing, or spreads weights in a way that can't be rehearsed.
    """
    command = command_of(read_tables(recipe))
    if command == "quickstart":
        quickstart = load_quickstart(recipe, output=Path("quickstart"), seed=0)
        stages: list[tuple[str, SftConfig | GrpoConfig]] = [("sft", quickstart.sft), ("grpo", quickstart.grpo)]
        sizes = None if model else quickstart.model
        return [RehearsedStage(name=name, config=config, model=model, tiny_model=sizes) for name, config in stages]
    if command == "evaluate":
        raise AppUsageError(f"{recipe}: evaluates a model and trains none; expected a recipe of `longrl sft` or `grpo`")
    if command in ("generate", "generate-grpo"):
        raise AppUsageError(f"{recipe}: generates pictures; expected a recipe of `longrl sft` or `grpo`")
    config = load_recipe(recipe, GrpoConfig if command == "grpo" else SftConfig)
    return [RehearsedStage(name=command, config=config, model=model or str(config.model.folder))]
