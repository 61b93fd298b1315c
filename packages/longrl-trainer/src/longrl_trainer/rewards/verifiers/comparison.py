"""What all verifiers have in common: find the answer in a response, read it and the right one, compare.

The answer is found with the grammar of `longvideo_reason_data.records.answers`. A right answer that can't be read is
the data's fault: the response is not judged.
"""

from collections.abc import Callable
from typing import TypeVar

from longrl_trainer.rewards.base import RewardResult, RewardStatus
from longvideo_reason_data.records.answers import ParseStatus, parse_response
from longvideo_reason_data.records.record import QuestionRecord

ValueT = TypeVar("ValueT")


def find_answer(response_text: str, *, finished: bool) -> str | RewardStatus:
    """The text of the one answer in a response to a question without options, or why there is none."""
    parsed = parse_response(response_text, ())
    if parsed.status is ParseStatus.AMBIGUOUS:
        return RewardStatus.AMBIGUOUS
    if parsed.status is ParseStatus.OK and parsed.text and any(map(str.isalnum, parsed.text)):
        return parsed.text
    return RewardStatus.NO_ANSWER if finished else RewardStatus.TRUNCATED


def judge_answer(
    response_text: str,
    *,
    finished: bool,
    record: QuestionRecord,
    read: Callable[[str], ValueT | RewardStatus],
    compare: Callable[[ValueT, ValueT], float],
) -> RewardResult:
    """Judge a response by the values that its answer and the right one stand for.

    Args:
        response_text: The response.
        finished: Whether the model ended it itself.
        record: The question.
        read: Reads an answer: a value, or NO_ANSWER or AMBIGUOUS.
        compare: The reward of a value, given first, and the right one.
    """
    right = read(record.answer)
    if isinstance(right, RewardStatus):
        return RewardResult(value=None, status=RewardStatus.VERIFIER_ERROR)
    said = find_answer(response_text, finished=finished)
    given = said if isinstance(said, RewardStatus) else read(said)
    if isinstance(given, RewardStatus):
        return RewardResult(value=0.0, status=given)
    return RewardResult(value=compare(given, right), status=RewardStatus.OK, parsed=str(given))
