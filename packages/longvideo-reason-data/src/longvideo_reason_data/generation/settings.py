"""What a build can be told, as one strict model that loads nothing heavy."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from longvideo_reason_data.language_model.accounts.prices import TokenPrice
from longvideo_reason_data.language_model.settings import ClientSettings, Price, exact
from longvideo_reason_data.media.decoders.base import DecoderName
from longvideo_reason_data.media.scenes import SceneSettings
from longvideo_reason_data.records.record import NonEmpty, Skill
from longvideo_reason_data.records.splits import SplitFractions

Engine = Literal["local", "ray"]
"""Where videos are read and questions put together: in this process, or by Ray Data on a cluster."""


class CaptionSettings(BaseModel):
    """How segments are shown to the captioner.

    Attributes:
        num_frames: Pictures of each segment.
        max_side: Longest side of a picture in pixels; larger ones are made smaller.
        jpeg_quality: Quality of a picture, of 100.
        max_tokens: Longest description.
        temperature: 0 for the likeliest description.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    num_frames: Annotated[int, Field(ge=1, le=64)] = 4
    max_side: Annotated[int, Field(ge=32, le=4096)] = 448
    jpeg_quality: Annotated[int, Field(ge=10, le=95)] = 85
    max_tokens: Annotated[int, Field(ge=1)] = 256
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0


class SkillQuotas(BaseModel):
    """How many questions are asked about each video.

    Attributes:
        temporal: Questions about order and duration.
        goal: Questions about goals and purposes.
        spatial: Questions about places.
        plot: Questions about the story.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    temporal: Annotated[int, Field(ge=0)] = 1
    goal: Annotated[int, Field(ge=0)] = 1
    spatial: Annotated[int, Field(ge=0)] = 1
    plot: Annotated[int, Field(ge=0)] = 1

    @model_validator(mode="after")
    def _some(self) -> Self:
        if not self.total:
            raise ValueError("the quotas of all skills are 0, expected at least one question")
        return self

    @property
    def total(self) -> int:
        """Questions about each video."""
        return sum(self.of(skill) for skill in Skill)

    def of(self, skill: Skill) -> int:
        """Questions of one skill."""
        return {
            Skill.TEMPORAL: self.temporal,
            Skill.GOAL: self.goal,
            Skill.SPATIAL: self.spatial,
            Skill.PLOT: self.plot,
        }[skill]


class QuestionSettings(BaseModel):
    """How questions are asked for.

    Attributes:
        quotas: Questions about each video in each of the four skills.
        open_ended_share: Share of the questions that have no options; which ones hangs on video, skill and number.
        max_tokens: Longest answer, reasoning included; doubled when it doesn't suffice.
        temperature: 0 for the likeliest answer.
        num_samples: How often an answer in the wrong form is asked for anew.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    quotas: SkillQuotas = SkillQuotas()
    open_ended_share: Annotated[float, Field(ge=0, le=1)] = 0.0
    max_tokens: Annotated[int, Field(ge=1)] = 2048
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.7
    num_samples: Annotated[int, Field(ge=1)] = 3


class BuildSettings(ClientSettings):
    """Settings of a build that have a default.

    Attributes:
        decoder: Which library makes the pixels, never another in its place; decord and torchcodec are extras.
        segments: What segments are: windows of equal length, or scenes (extra scenes).
        window_seconds: Length of a window.
        scenes: How scenes are found.
        subtitles: Folder with subtitle files named as the videos, where they don't lie beside them.
        captions: How segments are shown to the captioner.
        questions: How questions are asked for.
        splits: Shares of the splits.
        captioner_prompt_price: Price of a million tokens that the captioner reads; that of the others when not given.
        captioner_completion_price: Price of a million tokens that it writes; that of the others when not given.
        source: Where the videos are from, for the records.
        license: Under which licence they are, for the records.
        seed: Decides splits, letters and the order of options.
    """

    decoder: DecoderName = DecoderName.PYAV
    segments: Literal["windows", "scenes"] = "windows"
    window_seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 10.0
    scenes: SceneSettings = SceneSettings()
    subtitles: Path | None = None
    captions: CaptionSettings = CaptionSettings()
    questions: QuestionSettings = QuestionSettings()
    splits: SplitFractions = SplitFractions()
    captioner_prompt_price: Price | None = None
    captioner_completion_price: Price | None = None
    source: NonEmpty = "unknown"
    license: NonEmpty = "unknown"
    seed: int = 0

    def model_prices(self, captioner: str, *models: str | None) -> dict[str, TokenPrice]:
        """Give the price of the captioner and of the other models, or none when they aren't known.

        Raises:
            UsageError: When they aren't known though the cost is limited.
        """
        prices = self.prices(captioner, *models)
        if prices and captioner not in models:
            prompt, completion = self.captioner_prompt_price, self.captioner_completion_price
            known = prices[captioner]
            prices[captioner] = TokenPrice(
                prompt=known.prompt if prompt is None else exact(prompt),
                completion=known.completion if completion is None else exact(completion),
            )
        return prices
