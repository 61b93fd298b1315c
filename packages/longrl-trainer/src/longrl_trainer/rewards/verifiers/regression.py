"""Reward for an estimate: the mean relative accuracy of VSI-Bench.

The share of the thresholds t = 0.5, 0.55, …, 0.95 for which |given - right| / |right| < 1 - t: "Thinking in Space"
(arXiv 2412.14171), eq. 1.
"""

from decimal import Decimal

from pydantic import BaseModel, ConfigDict, Field

from longrl_trainer.rewards.base import RewardResult
from longrl_trainer.rewards.verifiers.comparison import judge_answer
from longrl_trainer.rewards.verifiers.quantities import Quantity, read_quantity
from longvideo_reason_data.question_types import QuestionType
from longvideo_reason_data.records.record import QuestionRecord

THRESHOLDS = tuple(Decimal(percent) / 100 for percent in range(50, 100, 5))


class RegressionSettings(BaseModel):
    """What an error is measured by."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    min_scale: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """The error is divided by at least this, in the unit of the right answer, so that right answers near 0 don't make
    every other one wrong.
    """


class MeanRelativeAccuracyReward:
    """From 0 to 1 the closer an estimate is to the right number."""

    Settings = RegressionSettings
    question_types = frozenset({QuestionType.REGRESSION})

    def __init__(self, settings: RegressionSettings) -> None:
        self._min_scale = Decimal(str(settings.min_scale))

    def score(self, response_text: str, *, finished: bool, record: QuestionRecord) -> RewardResult:
        """Judge one response."""
        return judge_answer(response_text, finished=finished, record=record, read=read_quantity, compare=self._compare)

    def _compare(self, given: Quantity, right: Quantity) -> float:
        number = given.in_unit_of(right)
        if number is None:
            return 0.0
        return mean_relative_accuracy(number, right.number, min_scale=self._min_scale)


def mean_relative_accuracy(given: Decimal, right: Decimal, *, min_scale: Decimal = Decimal(0)) -> float:
    """The mean relative accuracy of an estimate; with a scale of 0 only the right number has any."""
    scale = max(abs(right), min_scale)
    error = abs(given - right)
    if not scale:
        return float(not error)
    return sum(error < (1 - threshold) * scale for threshold in THRESHOLDS) / len(THRESHOLDS)
