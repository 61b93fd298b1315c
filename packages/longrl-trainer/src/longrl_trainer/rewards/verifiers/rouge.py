"""ROUGE-L of an open answer, which is measured and never rewarded: it counts shared words, not whether they are true.

F1 of the longest common subsequence of words: "ROUGE: A Package for Automatic Evaluation of Summaries" (ACL 2004),
section 3.
"""

from rapidfuzz.distance import LCSseq

from longrl_trainer.rewards.base import RewardResult
from longrl_trainer.rewards.verifiers.comparison import judge_answer
from longrl_trainer.rewards.verifiers.word_error_rate import split_words
from longvideo_reason_data.question_types import QuestionType
from longvideo_reason_data.records.record import QuestionRecord


class RougeReward:
    """ROUGE-L of the answer to an open question, for the journal alone."""

    question_types = frozenset({QuestionType.OPEN})
    is_only_logged = True

    def score(self, response_text: str, *, finished: bool, record: QuestionRecord) -> RewardResult:
        """Measure one response."""
        return judge_answer(response_text, finished=finished, record=record, read=str, compare=rouge_l)


def rouge_l(given: str, right: str) -> float:
    """F1 of the longest common subsequence of the words of two texts."""
    words, expected = split_words(given), split_words(right)
    if not words or not expected:
        return 0.0
    return 2 * LCSseq.similarity(words, expected) / (len(words) + len(expected))
