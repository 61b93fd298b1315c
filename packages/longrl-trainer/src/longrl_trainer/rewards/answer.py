"""Reward for the correct letter, parsed with the same grammar as in filters and evaluation."""

from longrl_trainer.rewards.base import RewardResult, RewardStatus
from longvideo_reason_data.question_types import QuestionType
from longvideo_reason_data.records.answers import ParsedAnswer, ParseStatus, parse_response
from longvideo_reason_data.records.record import QuestionRecord

STATUS_OF_PARSE = {
    ParseStatus.OK: RewardStatus.OK,
    ParseStatus.NO_ANSWER: RewardStatus.NO_ANSWER,
    ParseStatus.AMBIGUOUS: RewardStatus.AMBIGUOUS,
}


class AnswerReward:
    """1 for the correct letter, 0 for a wrong, missing or ambiguous one."""

    question_types = frozenset({QuestionType.CHOICE})

    def score(self, response_text: str, *, finished: bool, record: QuestionRecord) -> RewardResult:
        """Judge one response to a question with options; others have no letter to compare with."""
        if not record.options:
            return RewardResult(value=None, status=RewardStatus.VERIFIER_ERROR)
        parsed = parse_response(response_text, record.options)
        status = STATUS_OF_PARSE[parsed.status]
        if status is RewardStatus.NO_ANSWER and not finished:
            status = RewardStatus.TRUNCATED
        return RewardResult(value=float(is_correct(parsed, record)), status=status, parsed=parsed.letter)


def is_correct(parsed: ParsedAnswer, record: QuestionRecord) -> bool:
    """Whether a parsed response has the record's letter; an ambiguous or missing answer is wrong."""
    return parsed.status is ParseStatus.OK and parsed.letter == record.answer
