"""Scores that benchmarks publish instead of plain accuracy: of questions that belong together, and means of tasks.

Values are shares from 0 to 1. A question that couldn't be asked counts as wrong.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from longrl_trainer.evaluation.scoring.statistics import clustered_standard_error, mean
from longvideo_reason_data.benchmarks.layouts import BenchmarkLayout, SeriesRule
from longvideo_reason_data.benchmarks.question_rows import RELEVANCE
from longvideo_reason_data.benchmarks.questions import BenchmarkQuestion

_CHAIN_SCORES: Mapping[str, tuple[float, ...]] = {
    "[1,2,3,4]": (0, 1 / 16, 4 / 16, 9 / 16, 1),
    "[1,[2,3],4]": (0, 1 / 12, 4 / 12, 7 / 12, 1),
    "[[1,2],3,4]": (0, 1 / 10, 2 / 10, 5 / 10, 1),
}
"""Score by the number of questions that are right from the beginning of the chain."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedScore:
    """A benchmark's own score.

    Attributes:
        score: From 0 to 1.
        standard_error: Clustered by video; None for a mean of tasks.
        count: Number of questions or groups of questions in it.
    """

    score: float
    standard_error: float | None
    count: int


def score_group(structure: str, right: Sequence[bool]) -> float:
    """The non-linear score of four questions about one video, as in Video-MME-v2 (arXiv 2604.05015).

    Questions of one kind (`relevance`) score the square of the share that is right. In a chain, questions count up to
    the first wrong one; where two stand side by side, either counts as the first of them.
    """
    if structure == RELEVANCE:
        return (sum(right) / len(right)) ** 2
    num_right = next((place for place, is_right in enumerate(right) if not is_right), len(right))
    if structure == "[1,[2,3],4]" and num_right == 1 and right[2]:
        num_right = 2
    if structure == "[[1,2],3,4]" and num_right == 0 and right[1]:
        num_right = 1
    return _CHAIN_SCORES[structure][num_right]


def published_score(
    layout: BenchmarkLayout, questions: Sequence[BenchmarkQuestion], is_right: Callable[[BenchmarkQuestion], float]
) -> PublishedScore | None:
    """The score that a benchmark publishes; None if that is plain accuracy.

    Args:
        layout: The benchmark's layout.
        questions: All questions that belong to the score.
        is_right: Whether a question is right; where questions are scored alone it may be a share.
    """
    if layout.series_rule is SeriesRule.NONE and not layout.mean_of:
        return None
    series: dict[str, list[BenchmarkQuestion]] = {}
    for question in questions:
        series.setdefault(question.series or question.question_id, []).append(question)
    scored = [(of_series[0], _score(layout.series_rule, of_series, is_right)) for of_series in series.values()]
    if not layout.mean_of:
        values = [value for _, value in scored]
        error = clustered_standard_error(values, [first.video for first, _ in scored])
        return PublishedScore(score=mean(values), standard_error=error, count=len(values))
    tasks: dict[str, list[float]] = {}
    for first, value in scored:
        for task in first.groups.get(layout.mean_of, ("",)):
            tasks.setdefault(task, []).append(value)
    return PublishedScore(
        score=mean([mean(values) for values in tasks.values()]), standard_error=None, count=len(scored)
    )


def _score(
    rule: SeriesRule, questions: Sequence[BenchmarkQuestion], is_right: Callable[[BenchmarkQuestion], float]
) -> float:
    values = [is_right(question) for question in questions]
    if rule is SeriesRule.NONE:
        return mean(values)
    whole = [value == 1.0 for value in values]
    return float(all(whole)) if rule is SeriesRule.ALL_RIGHT else score_group(questions[0].structure, whole)
