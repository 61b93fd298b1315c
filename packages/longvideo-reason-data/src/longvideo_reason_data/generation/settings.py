"""The settings of a build, as one strict model that loads nothing heavy."""

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
"""Where videos are read and questions are generated: in this process, or by Ray Data on a cluster."""


class CaptionSettings(BaseModel):
    """How segments are shown to the captioner.

    Attributes:
        num_frames: Frames per segment.
        max_side: Longest side of a frame in pixels; larger ones are shrunk.
        jpeg_quality: JPEG quality of a frame, up to 100.
        max_tokens: Maximum tokens of a description.
        temperature: Sampling temperature; 0 for the most likely description.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    num_frames: Annotated[int, Field(ge=1, le=64)] = 4
    max_side: Annotated[int, Field(ge=32, le=4096)] = 448
    jpeg_quality: Annotated[int, Field(ge=10, le=95)] = 85
    max_tokens: Annotated[int, Field(ge=1)] = 256
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0


class SkillQuotas(BaseModel):
    """Number of questions per video and skill.

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
        """Number of questions per video."""
        return sum(self.of(skill) for skill in Skill)

    def of(self, skill: Skill) -> int:
        """Number of questions of one skill."""
        return {
            Skill.TEMPORAL: self.temporal,
            Skill.GOAL: self.goal,
            Skill.SPATIAL: self.spatial,
            Skill.PLOT: self.plot,
        }[skill]


class QuestionSettings(BaseModel):
    """How questions are asked for.

    Attributes:
        quotas: Questions per video for each of the four skills.
        open_ended_share: Share of the questions without options; which ones depends on video, skill and number.
        max_tokens: Maximum tokens of an answer, including reasoning; doubled if that isn't enough.
        temperature: Sampling temperature; 0 for the most likely answer.
        num_samples: How often an invalid answer is requested again.
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
        decoder: The decoding library, which is never replaced by another; decord and torchcodec are extras.
        segments: Kind of segments: windows of equal length, or scenes (extra scenes).
        window_seconds: Length of a window.
        scenes: How scenes are detected.
        subtitles: Folder with subtitle files named like the videos, if they aren't next to them.
        captions: How segments are shown to the captioner.
        questions: How questions are asked for.
        splits: Shares of the splits.
        captioner_prompt_price: Price per million tokens that the captioner reads; by default that of the other models.
        captioner_completion_price: Price per million tokens that it generates; by default that of the other models.
        source: Where the videos are from, for the records.
        license: Licence of the videos, for the records.
        seed: Determines splits, letters and the order of options.
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
        """Return the prices of the captioner and of the other models, or none if they aren't known.

        Raises:
            UsageError: When they aren't known although the cost is limited.
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
