"""Reward for a number that is right or wrong, such as a count."""

from decimal import Decimal

from pydantic import BaseModel, ConfigDict, Field

from longrl_trainer.rewards.base import RewardResult
from longrl_trainer.rewards.verifiers.comparison import judge_answer
from longrl_trainer.rewards.verifiers.quantities import Quantity, read_quantity
from longvideo_reason_data.question_types import QuestionType
from longvideo_reason_data.records.record import QuestionRecord


class NumericSettings(BaseModel):
    """How far a number may be from the right one: by the larger of both tolerances."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    absolute_tolerance: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """In the unit of the right answer."""
    relative_tolerance: float = Field(default=0.0, ge=0, lt=1)
    """As a share of the right answer."""


class NumericReward:
    """1 for the right number, within a tolerance; thousands may be separated, and units are converted."""

    Settings = NumericSettings
    question_types = frozenset({QuestionType.NUMERIC})

    def __init__(self, settings: NumericSettings) -> None:
        self._absolute = Decimal(str(settings.absolute_tolerance))
        self._relative = Decimal(str(settings.relative_tolerance))

    def score(self, response_text: str, *, finished: bool, record: QuestionRecord) -> RewardResult:
        """Judge one response."""
        return judge_answer(response_text, finished=finished, record=record, read=read_quantity, compare=self._compare)

    def _compare(self, given: Quantity, right: Quantity) -> float:
        number = given.in_unit_of(right)
        tolerance = max(self._absolute, self._relative * abs(right.number))
        return float(number is not None and abs(number - right.number) <= tolerance)
