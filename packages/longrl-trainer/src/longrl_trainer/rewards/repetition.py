"""Reward against repetition, from -1 to 0: the share of a response's word groups that were there before.

Of n words in a row, that is, as in "Demystifying Long Chain-of-Thought Reasoning" (arXiv 2502.03373), section 4.3, but
over the whole response. Chinese and Japanese characters count as words.
"""

import re

from pydantic import BaseModel, ConfigDict, Field

from longrl_trainer.rewards.base import RewardResult, RewardStatus
from longvideo_reason_data.records.record import QuestionRecord

_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]|[^\W\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]+|[^\w\s]")


class RepetitionSettings(BaseModel):
    """What counts as a repetition."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    num_words: int = Field(default=4, ge=1)
    """Words in a row that are compared with those before."""


class RepetitionReward:
    """From -1 for endless repetition to 0 for none."""

    Settings = RepetitionSettings

    def __init__(self, settings: RepetitionSettings) -> None:
        self._num_words = settings.num_words

    def score(self, response_text: str, *, finished: bool, record: QuestionRecord) -> RewardResult:
        """Judge one response."""
        return RewardResult(value=-repeated_share(response_text, self._num_words), status=RewardStatus.OK)


def repeated_share(text: str, num_words: int = 4) -> float:
    """The share of the groups of so many words in a row that occurred before; 0 for a shorter text."""
    words = _WORD.findall(text.casefold())
    groups = list(zip(*(words[start:] for start in range(num_words)), strict=False))
    return 1.0 - len(set(groups)) / len(groups) if groups else 0.0
