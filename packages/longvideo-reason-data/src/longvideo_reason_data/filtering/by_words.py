"""Filters questions without using a model: by their text, against each other, and against evaluation sets.

Models answer the rest, one video after the other, in one process or on a cluster
(`longvideo_reason_data.filtering.by_answers`); this module also combines the results.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from longvideo_reason_data.filtering.benchmark_files import Benchmark
from longvideo_reason_data.filtering.decontamination import DecontaminationReport, find_contamination
from longvideo_reason_data.filtering.near_duplicates import find_repeated_questions
from longvideo_reason_data.filtering.rules import check_question
from longvideo_reason_data.media.fingerprints import Fingerprint, find_same_footage
from longvideo_reason_data.records.drop_reasons import Reason, Verdict
from longvideo_reason_data.records.record import QuestionRecord

MeasuredQuestion = tuple[QuestionRecord, Verdict | None]
"""A question with its pass rates, and why it is dropped, if it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RejectedQuestion:
    """A question that isn't kept, with the pass rates measured until then, and why."""

    record: QuestionRecord
    verdict: Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Filtered:
    """The result of filtering; kept and dropped together are all questions.

    Attributes:
        kept: Questions with their pass rates, in order of their ids.
        dropped: The others, in order of their ids.
        decontamination: What was found of the evaluation sets.
    """

    kept: tuple[QuestionRecord, ...]
    dropped: tuple[RejectedQuestion, ...]
    decontamination: DecontaminationReport


@dataclass(frozen=True, slots=True, kw_only=True)
class SortedQuestions:
    """The result of filtering without a model.

    Attributes:
        dropped: The unsuitable questions.
        remaining: The others, grouped by their media.
        decontamination: What was found of the evaluation sets.
    """

    dropped: tuple[RejectedQuestion, ...]
    remaining: tuple[tuple[QuestionRecord, ...], ...]
    decontamination: DecontaminationReport

    def join(self, measured: Iterable[MeasuredQuestion]) -> Filtered:
        """Combine these with the measured ones."""
        kept: list[QuestionRecord] = []
        dropped = list(self.dropped)
        for record, verdict in measured:
            if verdict is None:
                kept.append(record)
            else:
                dropped.append(RejectedQuestion(record=record, verdict=verdict))
        return Filtered(
            kept=tuple(sorted(kept, key=lambda record: record.question_id)),
            dropped=tuple(sorted(dropped, key=lambda item: item.record.question_id)),
            decontamination=self.decontamination,
        )


def sort_questions(
    records: Sequence[QuestionRecord], fingerprints: Mapping[str, Fingerprint], benchmarks: Sequence[Benchmark] = ()
) -> SortedQuestions:
    """Drop the questions that are unsuitable, without using a model.

    Args:
        records: The questions.
        fingerprints: Fingerprints of their media, by digest.
        benchmarks: What must not be among them.
    """
    verdicts, report = _judge_words(records, fingerprints, benchmarks)
    dropped: list[RejectedQuestion] = []
    remaining: dict[tuple[str, ...], list[QuestionRecord]] = {}
    for record in records:
        if record.question_id in verdicts:
            dropped.append(RejectedQuestion(record=record, verdict=verdicts[record.question_id]))
        else:
            remaining.setdefault(record.digests, []).append(record)
    return SortedQuestions(
        dropped=tuple(dropped),
        remaining=tuple(tuple(group) for group in remaining.values()),
        decontamination=report,
    )


def _judge_words(
    records: Sequence[QuestionRecord], fingerprints: Mapping[str, Fingerprint], benchmarks: Sequence[Benchmark]
) -> tuple[dict[str, Verdict], DecontaminationReport]:
    """Find the questions that are unsuitable, without using a model.

    Args:
        records: The questions.
        fingerprints: Fingerprints of their media, by digest.
        benchmarks: What must not be among them.

    Returns:
        The verdict on each unsuitable question by its id, and what was found of the evaluation sets.
    """
    verdicts: dict[str, Verdict] = {}
    report = find_contamination(records, fingerprints, benchmarks)
    for question_id, found in report.by_question().items():
        detail = f"{found.benchmark}, row {found.row}, by its {found.net}, {found.likeness:.0%} alike"
        verdicts[question_id] = Verdict(reason=Reason.IN_BENCHMARK, detail=detail)
    for record in records:
        reasons = check_question(record, record.longest_seconds)
        if reasons and record.question_id not in verdicts:
            verdicts[record.question_id] = Verdict(reason=reasons[0], detail=", ".join(reasons))
    # Only among the suitable ones; otherwise a question could be dropped because of one that is dropped itself.
    fit = [record for record in records if record.question_id not in verdicts]
    for question_id, (kept, alike) in find_repeated_questions(fit, find_same_footage(fingerprints)).items():
        verdicts[question_id] = Verdict(
            reason=Reason.NEAR_DUPLICATE, detail=f"asks what {kept} asks, {alike:.0%} alike"
        )
    return verdicts, report
