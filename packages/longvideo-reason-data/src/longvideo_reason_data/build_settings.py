"""What a build can be told, as one strict model that loads nothing heavy."""

from decimal import Decimal
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from longvideo_reason_data.errors import UsageError
from longvideo_reason_data.model_requests import PICTURE_TOKENS
from longvideo_reason_data.prices import TokenPrice
from longvideo_reason_data.records import NonEmpty
from longvideo_reason_data.splits import SplitFractions

Price = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class CaptionSettings(BaseModel):
    """How segments are shown to the captioner.

    Attributes:
        num_frames: Pictures of each segment.
        max_side: Longest side of a picture in pixels; larger ones are made smaller.
        jpeg_quality: Quality of a picture, of 100.
        max_tokens: Longest description.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    num_frames: Annotated[int, Field(ge=1, le=64)] = 4
    max_side: Annotated[int, Field(ge=32, le=4096)] = 448
    jpeg_quality: Annotated[int, Field(ge=10, le=95)] = 85
    max_tokens: Annotated[int, Field(ge=1)] = 256


class QuestionSettings(BaseModel):
    """How questions are asked for.

    Attributes:
        questions_per_skill: Questions about each video in each of the four skills.
        max_tokens: Longest answer, reasoning included; doubled when it doesn't suffice.
        temperature: 0 for the likeliest answer.
        num_samples: How often an answer in the wrong form is asked for anew.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    questions_per_skill: Annotated[int, Field(ge=1)] = 1
    max_tokens: Annotated[int, Field(ge=1)] = 2048
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.7
    num_samples: Annotated[int, Field(ge=1)] = 3


class BuildSettings(BaseModel):
    """Settings of a build that have a default.

    Attributes:
        window_seconds: Length of a segment.
        captions: How segments are shown to the captioner.
        questions: How questions are asked for.
        splits: Shares of the splits.
        num_parallel: Most requests under way at a time.
        num_attempts: How often a request is sent before its item is dropped.
        timeout_seconds: Longest wait for one answer.
        first_wait_seconds: Wait before the second attempt.
        requests_per_minute: Most requests per minute.
        tokens_per_minute: Most tokens per minute, on average.
        prompt_price: Price of a million tokens read; with both prices given, the manifest states the cost.
        completion_price: Price of a million tokens written.
        captioner_prompt_price: The same for the captioner; that of the reasoner when not given.
        captioner_completion_price: The same for the captioner; that of the reasoner when not given.
        max_cost: Most that this dataset may cost, over all runs; needs the prices.
        picture_tokens: Most tokens that the server counts for a picture; `max_cost` rests on it.
        source: Where the videos are from, for the records.
        license: Under which licence they are, for the records.
        seed: Decides splits, letters and the order of options.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    window_seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 10.0
    captions: CaptionSettings = CaptionSettings()
    questions: QuestionSettings = QuestionSettings()
    splits: SplitFractions = SplitFractions()
    num_parallel: Annotated[int, Field(ge=1)] = 16
    num_attempts: Annotated[int, Field(ge=1)] = 6
    timeout_seconds: Annotated[float, Field(gt=0)] = 300.0
    first_wait_seconds: Annotated[float, Field(ge=0)] = 1.0
    requests_per_minute: Annotated[int, Field(ge=1)] | None = None
    tokens_per_minute: Annotated[int, Field(ge=1)] | None = None
    prompt_price: Price | None = None
    completion_price: Price | None = None
    captioner_prompt_price: Price | None = None
    captioner_completion_price: Price | None = None
    max_cost: Price | None = None
    picture_tokens: Annotated[int, Field(ge=1)] = PICTURE_TOKENS
    source: NonEmpty = "unknown"
    license: NonEmpty = "unknown"
    seed: int = 0

    def prices(self, model: str, captioner: str) -> dict[str, TokenPrice]:
        """Give the price of each model, or none when they aren't known.

        Raises:
            UsageError: When they aren't known though the cost is limited.
        """
        if self.prompt_price is None or self.completion_price is None:
            if self.max_cost is not None:
                raise UsageError(
                    f"--max-cost {self.max_cost:g}: the prices aren't known; "
                    "give --prompt-price and --completion-price, per million tokens"
                )
            return {}
        prompt, completion = self.captioner_prompt_price, self.captioner_completion_price
        return {
            captioner: TokenPrice(
                prompt=_exact(self.prompt_price if prompt is None else prompt),
                completion=_exact(self.completion_price if completion is None else completion),
            ),
            model: TokenPrice(prompt=_exact(self.prompt_price), completion=_exact(self.completion_price)),
        }

    @property
    def exact_max_cost(self) -> Decimal | None:
        """The limit on the cost as it was written, without the error of a binary fraction."""
        return None if self.max_cost is None else _exact(self.max_cost)


def _exact(amount: float) -> Decimal:
    return Decimal(str(amount))
