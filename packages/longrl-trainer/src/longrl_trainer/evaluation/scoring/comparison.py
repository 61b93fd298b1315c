"""Two runs on the same questions, compared question by question.

A difference of two accuracies says little without the pairing: most questions are right or wrong in both. Each question
is matched with itself under the same protocol; the interval is that of a paired bootstrap over videos, the test is
McNemar's on the responses that are right in one run only.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from longrl_trainer.errors import TrainerUsageError
from longrl_trainer.evaluation.scoring.answers import BenchmarkAnswer
from longrl_trainer.evaluation.scoring.statistics import bootstrap_interval, mcnemar_p_value, mean

SIGNIFICANCE = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class ProtocolComparison:
    """Two runs under one protocol, on the questions that both have.

    Attributes:
        protocol: Name of the protocol.
        first: Accuracy of the first run.
        second: Accuracy of the second run.
        difference: Of the second from the first.
        low: Lower end of its 95 % interval.
        high: Upper end.
        num_questions: Questions that both runs have.
        num_unmatched: Questions that only one of them has.
        both_right: Responses right in both runs.
        only_first: Right in the first only.
        only_second: Right in the second only.
        both_wrong: Right in neither.
        p_value: McNemar's, exact.
        verdict: In words.
    """

    protocol: str
    first: float
    second: float
    difference: float
    low: float
    high: float
    num_questions: int
    num_unmatched: int
    both_right: int
    only_first: int
    only_second: int
    both_wrong: int
    p_value: float
    verdict: str


def compare_answers(
    first: Sequence[BenchmarkAnswer], second: Sequence[BenchmarkAnswer], *, seed: int = 0
) -> list[ProtocolComparison]:
    """Compare two runs under each protocol that both have.

    Args:
        first: All answers of a run.
        second: Those of the other.
        seed: Determines the resamples.

    Raises:
        TrainerUsageError: They have no protocol, or under one no question, in common.
    """
    protocols = [list(dict.fromkeys(answer.protocol for answer in answers)) for answers in (first, second)]
    common = [protocol for protocol in protocols[0] if protocol in protocols[1]]
    if not common:
        shown = " and ".join(", ".join(names) for names in protocols)
        raise TrainerUsageError(f"the runs have no protocol in common, found {shown}; evaluate both in the same way")
    return [
        _compare(
            protocol,
            [answer for answer in first if answer.protocol == protocol],
            [answer for answer in second if answer.protocol == protocol],
            seed,
        )
        for protocol in common
    ]


def _compare(
    protocol: str, first: Sequence[BenchmarkAnswer], second: Sequence[BenchmarkAnswer], seed: int
) -> ProtocolComparison:
    others = {(answer.question_id, answer.rotation): answer for answer in second}
    pairs: dict[str, list[tuple[bool, bool]]] = {}
    videos: dict[str, str] = {}
    for answer in first:
        other = others.get((answer.question_id, answer.rotation))
        if other is not None:
            pairs.setdefault(answer.question_id, []).append((answer.correct, other.correct))
            videos[answer.question_id] = answer.video
    if not pairs:
        raise TrainerUsageError(f"the runs have no question in common under {protocol}; evaluate the same benchmark")
    every = {answer.question_id for answer in (*first, *second)}
    firsts = [mean([one for one, _ in of_question]) for of_question in pairs.values()]
    seconds = [mean([two for _, two in of_question]) for of_question in pairs.values()]
    differences = [two - one for one, two in zip(firsts, seconds, strict=True)]
    interval = bootstrap_interval(differences, list(videos.values()), seed=seed)
    responses = [pair for of_question in pairs.values() for pair in of_question]
    only_first, only_second = responses.count((True, False)), responses.count((False, True))
    p_value = mcnemar_p_value(only_first, only_second)
    return ProtocolComparison(
        protocol=protocol,
        first=mean(firsts),
        second=mean(seconds),
        difference=mean(differences),
        low=interval.low,
        high=interval.high,
        num_questions=len(pairs),
        num_unmatched=len(every) - len(pairs),
        both_right=responses.count((True, True)),
        only_first=only_first,
        only_second=only_second,
        both_wrong=responses.count((False, False)),
        p_value=p_value,
        verdict=_verdict(only_first, only_second, p_value),
    )


def _verdict(only_first: int, only_second: int, p_value: float) -> str:
    if not only_first and not only_second:
        return "no difference"
    if p_value >= SIGNIFICANCE:
        return "no significant difference"
    return "the second is better" if only_second > only_first else "the first is better"
