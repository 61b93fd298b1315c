"""Reward for text that is read off: 1 minus the word error rate, or the character error rate.

The rate is the edit distance over words (or characters) by the number of those in the right text; the reward isn't
negative. Compatible characters (Unicode NFKC), upper and lower case, and punctuation don't count.
"""

import re
import unicodedata
from typing import Literal

from pydantic import BaseModel, ConfigDict
from rapidfuzz.distance import Levenshtein

from longrl_trainer.rewards.base import RewardResult, RewardStatus
from longrl_trainer.rewards.verifiers.comparison import judge_answer
from longvideo_reason_data.question_types import QuestionType
from longvideo_reason_data.records.record import QuestionRecord


class WordErrorRateSettings(BaseModel):
    """What is counted."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    unit: Literal["words", "characters"] = "words"
    """What an error is counted in; characters for languages that don't separate words."""


class WordErrorRateReward:
    """From 0 to 1 the fewer words of a text are wrong, missing or too many."""

    Settings = WordErrorRateSettings
    question_types = frozenset({QuestionType.OCR})

    def __init__(self, settings: WordErrorRateSettings) -> None:
        self._unit = settings.unit

    def score(self, response_text: str, *, finished: bool, record: QuestionRecord) -> RewardResult:
        """Judge one response."""
        return judge_answer(response_text, finished=finished, record=record, read=self._read, compare=compare_texts)

    def _read(self, text: str) -> str | RewardStatus:
        words = split_words(text)
        if not words:
            return RewardStatus.NO_ANSWER
        return " ".join(words) if self._unit == "words" else " ".join("".join(words))


def split_words(text: str) -> list[str]:
    """The words of a text for comparison, without case and punctuation."""
    return re.sub(r"[^\w\s]|_", " ", unicodedata.normalize("NFKC", text).casefold()).split()


def compare_texts(given: str, right: str) -> float:
    """1 minus the error rate of one text against another, in parts separated by spaces; at least 0."""
    parts = right.split()
    return max(0.0, 1.0 - Levenshtein.distance(given.split(), parts) / len(parts))
