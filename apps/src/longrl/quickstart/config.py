"""The quickstart's recipe: the world, the model, both training stages and the evaluation, in one typed model.

A recipe has all settings of training but no paths: the quickstart fills in folders, seed and splits, so `[sft]` and
`[grpo]` are ordinary training recipes without them.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self, cast

from pydantic import BaseModel, ConfigDict, Field, model_validator

from longrl.stages import RECIPES_FOLDER, read_tables
from longrl.tiny_model import TinyModelSettings
from longrl_trainer.config.recipes import parse_config
from longrl_trainer.config.sections import DataSection, Section
from longrl_trainer.config.stages import EvaluateConfig, GrpoConfig, SftConfig
from longrl_trainer.errors import TrainerUsageError
from longvideo_reason_data.records.record import Split
from longvideo_reason_data.timeline.world import WorldSettings

QUICKSTART_RECIPE = RECIPES_FOLDER / "quickstart.toml"
SOUND_RECIPE = RECIPES_FOLDER / "quickstart_sound.toml"
TRAIN_RL_LIMIT = 400
"""Questions of GRPO's training that are asked before and after it."""

Lacking = Literal["blind", "sound-off", "picture-off"]
"""What an evaluation of the final model does without: the whole video, its sound, or its pictures."""
_WITHOUT: Mapping[Lacking | None, Mapping[str, bool]] = {
    "sound-off": {"sound": False},
    "picture-off": {"pictures": False},
}


class WorldSection(WorldSettings):
    """The rendered world: length, difficulty and number of its videos."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    train_sft_videos: int = Field(ge=1)
    """Number of videos for SFT."""
    train_rl_videos: int = Field(ge=1)
    """Number of videos for GRPO."""
    held_out_videos: int = Field(ge=1)
    """Number of videos not used in training."""
    questions_per_video: int = Field(ge=1)
    """Maximum number of questions per video; a simple story may have fewer."""
    hasty_fraction: float = Field(default=0.0, ge=0, lt=1)
    """Share of the SFT demonstrations that guess without the video."""

    def world(self) -> WorldSettings:
        """The settings of a single video."""
        return WorldSettings(**self.model_dump(include=set(WorldSettings.model_fields)))

    def videos(self) -> dict[Split, int]:
        """Number of videos by split."""
        return {
            Split.TRAIN_SFT: self.train_sft_videos,
            Split.TRAIN_RL: self.train_rl_videos,
            Split.HELD_OUT: self.held_out_videos,
        }


class EvaluationSection(Section):
    """Evaluation on held-out questions; response length and sampler are those of `[grpo]`."""

    num_frames: tuple[int, ...] = Field(min_length=1)
    """Frame counts for the final model, ascending; the one of `[grpo.data]` must be among them."""
    temperature: float = Field(default=1.0, ge=0)
    """Sampling temperature: 1 measures the trained policy itself; 0 selects its most probable tokens."""
    limit: int | None = Field(default=None, ge=1)
    """Ask at most this many questions."""
    train_rl_limit: int = Field(default=TRAIN_RL_LIMIT, ge=1)
    """Before and after GRPO, also ask at most this many of the questions that it trains on, spread over all of them."""

    @model_validator(mode="after")
    def _ascending(self) -> Self:
        if self.num_frames[0] < 1 or list(self.num_frames) != sorted(set(self.num_frames)):
            raise ValueError(f"num_frames must ascend from 1 or more, got {list(self.num_frames)}")
        return self


class QuickstartConfig(Section):
    """The complete settings of the quickstart, with the paths filled in."""

    output: Path
    """Folder for all output; `--output` of the command."""
    seed: int = Field(ge=0)
    """Determines the world, the model and the rollouts; `--seed` of the command."""
    world: WorldSection
    model: TinyModelSettings
    sft: SftConfig
    grpo: GrpoConfig
    evaluation: EvaluationSection

    @model_validator(mode="after")
    def _comparable(self) -> Self:
        main = self.grpo.data.num_frames
        if main not in self.evaluation.num_frames:
            raise ValueError(
                f"evaluation.num_frames {list(self.evaluation.num_frames)} must contain grpo.data.num_frames = {main}, "
                "at which all models are compared"
            )
        return self

    @model_validator(mode="after")
    def _hears_what_sounds(self) -> Self:
        sound = self.world.sound
        for name, found in (
            ("sft.data.sound", self.sft.data.sound),
            ("grpo.data.sound", self.grpo.data.sound),
            ("model.audio_hidden_size", self.model.hears),
        ):
            if found != sound:
                raise ValueError(
                    f"{name} {'is' if found else 'is not'} set with world.sound={str(sound).lower()}: a world with "
                    "sound needs a model that hears and data with sound; set all of them or none"
                )
        return self

    def evaluation_config(
        self, model_folder: Path, output: Path, *, num_frames: int, lacking: Lacking | None = None
    ) -> EvaluateConfig:
        """One evaluation on the held-out videos, if anything is lacking without that part of them."""
        return EvaluateConfig(
            model=self.grpo.model.model_copy(update={"folder": model_folder}),
            data=self._held_out(num_frames).model_copy(update=_WITHOUT.get(lacking, {})),
            output=output,
            blind=lacking == "blind",
            temperature=self.evaluation.temperature,
            max_response_tokens=self.grpo.max_response_tokens,
            limit=self.evaluation.limit,
            seed=self.seed,
            dtype=self.grpo.dtype,
            sampler=self.grpo.sampler,
        )

    def rl_questions_config(self, model_folder: Path, output: Path) -> EvaluateConfig:
        """One evaluation on the questions that GRPO trains on."""
        config = self.evaluation_config(model_folder, output, num_frames=self.main_frames)
        return config.model_copy(update={"data": self.grpo.data, "limit": self.evaluation.train_rl_limit})

    def data_in_use(self) -> list[DataSection]:
        """Every split with every number of frames that any stage uses for it."""
        held_out = [self._held_out(num_frames) for num_frames in self.evaluation.num_frames]
        return [self.sft.data, self.grpo.data, *held_out]

    @property
    def main_frames(self) -> int:
        """The number of frames at which all models are compared; one of those of the evaluation."""
        return next(num_frames for num_frames in self.evaluation.num_frames if num_frames == self.grpo.data.num_frames)

    def _held_out(self, num_frames: int) -> DataSection:
        return self.grpo.data.model_copy(update={"split": "held_out", "num_frames": num_frames})


def load_quickstart(recipe: Path, *, output: Path, seed: int) -> QuickstartConfig:
    """Read a recipe and fill in the paths below `output`."""
    tables = read_tables(recipe)
    model = {"folder": str(output / "model"), "store": str(output / "embeddings")}
    trained = model | {"folder": str(output / "sft" / "model")}
    dataset = str(output / "dataset")
    places = {
        "output": str(output),
        "seed": seed,
        "sft": {
            "output": str(output / "sft"),
            "seed": seed,
            "model": model,
            "data": {"dataset": dataset, "split": "train_sft"},
        },
        "grpo": {
            "output": str(output / "grpo"),
            "seed": seed,
            "model": trained,
            "data": {"dataset": dataset, "split": "train_rl"},
        },
    }
    return parse_config(fill_in_places(tables, places, source=str(recipe)), QuickstartConfig, source=str(recipe))


def shaping_settings(config: BaseModel) -> dict[str, Any]:
    """A training configuration without paths, which don't affect the result."""
    dumped = config.model_dump(mode="json", exclude={"output": True, "data": {"dataset"}})
    dumped["model"] = {"device": dumped["model"]["device"]}
    return dumped


def fill_in_places(tables: dict[str, Any], places: dict[str, Any], *, source: str, prefix: str = "") -> dict[str, Any]:
    """Tables with the paths added; a recipe that sets one itself is refused."""
    filled = dict(tables)
    for name, place in places.items():
        if name not in filled:
            filled[name] = place
        elif isinstance(place, dict) and isinstance(filled[name], dict):
            nested = cast(dict[str, Any], place)
            filled[name] = fill_in_places(filled[name], nested, source=source, prefix=f"{prefix}{name}.")
        elif not isinstance(place, dict):
            raise TrainerUsageError(f"{source}: {prefix}{name}: the quickstart sets this itself; remove the line")
    return filled
