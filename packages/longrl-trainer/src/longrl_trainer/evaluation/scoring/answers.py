"""What became of one asked question: the response or why there is none, and whether it is right.

Responses are kept as they were generated; everything else follows from them and the question, so an old run can be
judged again. A question that couldn't be asked is wrong, like an answer that can't be found in a response.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from longrl_trainer.evaluation.protocols import published_letter, rotated, shown_letter
from longrl_trainer.evaluation.scoring.official import judge_officially
from longrl_trainer.rewards.verifiers.quantities import Quantity, read_quantity
from longvideo_reason_data.benchmarks.questions import BenchmarkQuestion
from longvideo_reason_data.records.answers import ParsedAnswer, ParseStatus, parse_response

NOT_ASKED = "not_asked"


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkResponse:
    """What the model said, or why it wasn't asked.

    Attributes:
        protocol: Name of the protocol.
        question_id: The question.
        rotation: The published place of the option shown first.
        text: The response as generated; empty if there is none.
        finished: Whether the model ended it itself.
        num_tokens: Its tokens.
        problem: Why there is none, as one word; empty if there is one.
        detail: The same in a line.
    """

    protocol: str
    question_id: str
    rotation: int = 0
    text: str = ""
    finished: bool = False
    num_tokens: int = 0
    problem: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkAnswer:
    """One judged response; the fields are the keys of a line of `answers.jsonl`.

    Attributes:
        protocol: Name of the protocol.
        question_id: The question.
        rotation: The published place of the option shown first.
        video: Its video, which questions may share.
        groups: See `BenchmarkQuestion`.
        answer: The right letter as published, or the right answer to an open question.
        num_options: Number of its options.
        status: Whether one answer was found: `ok`, `no_answer`, `ambiguous`, or `not_asked`.
        chosen: The letter as published, or the answer to an open question; None if none was found.
        correct: Whether it is right.
        official: What the benchmark's own scorer reads, among the options as shown; None if that isn't known here.
        official_score: 1 if it counts that as right; chance where it guesses.
        finished: Whether the model ended the response itself.
        num_tokens: Tokens of the response.
        problem: Why the question wasn't asked; empty if it was.
        detail: The same in a line.
        response: The response.
        is_undecided: Whether a judge was asked and gave no judgement, so that the answer isn't counted as right.
    """

    protocol: str
    question_id: str
    rotation: int
    video: str
    groups: Mapping[str, tuple[str, ...]]
    answer: str
    num_options: int
    status: str
    chosen: str | None
    correct: bool
    official: str | None
    official_score: float | None
    finished: bool
    num_tokens: int
    problem: str
    detail: str
    response: str
    is_undecided: bool = False


def judge_response(benchmark: str, question: BenchmarkQuestion, response: BenchmarkResponse) -> BenchmarkAnswer:
    """Find the answer in a response, by our grammar and as the benchmark's own scorer does."""
    options = rotated(question.options, response.rotation)
    num_options = len(options)
    answer = question.answer
    if options and answer:
        answer = shown_letter(answer, response.rotation, num_options)
    parsed = parse_response(response.text, options)
    official = judge_officially(benchmark, response.text, options, answer)
    status = NOT_ASKED if response.problem else str(parsed.status)
    chosen = _chosen(parsed, response.rotation, num_options)
    if response.problem:
        chosen, official_score = None, None if official is None else 0.0
    else:
        official_score = None if official is None else official.score
    return BenchmarkAnswer(
        protocol=response.protocol,
        question_id=question.question_id,
        rotation=response.rotation,
        video=question.video_file or question.video,
        groups=question.groups,
        answer=question.answer,
        num_options=num_options,
        status=status,
        chosen=chosen,
        correct=_is_right(chosen, question),
        official=None if official is None or response.problem else official.letter,
        official_score=official_score,
        finished=response.finished,
        num_tokens=response.num_tokens,
        problem=response.problem,
        detail=response.detail,
        response=response.text,
    )


def _chosen(parsed: ParsedAnswer, rotation: int, num_options: int) -> str | None:
    if parsed.status is not ParseStatus.OK:
        return None
    return parsed.text if parsed.letter is None else published_letter(parsed.letter, rotation, num_options)


def _is_right(chosen: str | None, question: BenchmarkQuestion) -> bool:
    """Whether a letter is the right one or, without options, the same words in any case and without articles."""
    if chosen is None or not question.answer:
        return False
    return chosen == question.answer if question.options else _words(chosen) == _words(question.answer)


def is_compared_by_words(question: BenchmarkQuestion) -> bool:
    """Whether a rule suffices for an open question, because its answer is nothing but a number."""
    words = _words(question.answer)
    return len(words) == 1 and isinstance(read_quantity(words[0]), Quantity)


def _words(text: str) -> list[str]:
    words = [word.strip(".,;:!?'\"()") for word in text.casefold().split()]
    return [word for word in words if word and word not in ("a", "an", "the")]
