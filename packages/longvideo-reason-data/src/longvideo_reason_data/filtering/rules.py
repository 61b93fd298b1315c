"""Which questions are unsuitable, and why: by their text, and by models' answers.

Everything here is a pure function. The text of a question is checked before any request; its pass rates are checked
after each condition, so that a question that fails costs no more.
"""

import math
import re
from collections.abc import Sequence

from longvideo_reason_data.filtering.option_shortcuts import check_options
from longvideo_reason_data.filtering.reasoning_checks import TOLERANCE_SECONDS, check_reasoning
from longvideo_reason_data.filtering.settings import Thresholds
from longvideo_reason_data.records.answers import LETTERS
from longvideo_reason_data.records.drafts import QuestionDraft
from longvideo_reason_data.records.drop_reasons import Reason, Verdict
from longvideo_reason_data.records.pass_rates import Condition, PassRate
from longvideo_reason_data.records.record import QuestionRecord, Split

_ABOUT_CAPTIONS = re.compile(
    r"\bcaptions?\b|\b(?:the|given|provided|these|this) (?:descriptions?|transcripts?)\b", re.IGNORECASE
)
# In an ambiguous question the right option and its rival have at least this share of the answers; guesses spread over
# all options.
_SHARE_OF_TWO = 0.9


def check_question(question: QuestionDraft | QuestionRecord, duration_seconds: float | None) -> tuple[Reason, ...]:
    """List everything that is wrong with the text of a question.

    Args:
        question: A draft, or a record. A record without reasoning isn't checked for it.
        duration_seconds: Length of its video, or of the longest of several; None for a question about images only,
            which isn't checked for times.

    Returns:
        The reasons to drop it in a fixed order; none for a suitable one.
    """
    right = LETTERS.index(question.answer) if question.options else 0
    reasons = check_options(question.question, question.options, right)
    length = math.inf if duration_seconds is None else duration_seconds
    latest = length + TOLERANCE_SECONDS
    if any(span.end_seconds > latest or span.start_seconds >= length for span in question.evidence):
        reasons.append(Reason.EVIDENCE_OUTSIDE)
    if question.reasoning:
        reasons += check_reasoning(question.reasoning, question.options, question.answer, duration_seconds)
    if _ABOUT_CAPTIONS.search(" ".join((question.question, question.reasoning, *question.options))):
        reasons.append(Reason.MENTIONS_CAPTIONS)
    return tuple(reasons)


def decide(record: QuestionRecord, rates: Sequence[PassRate], thresholds: Thresholds) -> Verdict | None:
    """Judge a question by its answers so far.

    Args:
        record: The question; its own pass rates are ignored.
        rates: How it was answered. Missing conditions don't count against the question.
        thresholds: Limits on pass rates.

    Returns:
        The reason to drop it, or None.
    """
    found = {rate.condition: rate for rate in rates}
    for condition, most, reason in (
        (Condition.BLIND, thresholds.max_blind_rate, Reason.ANSWERED_BLIND),
        (Condition.SINGLE_FRAME, thresholds.max_single_frame_rate, Reason.ANSWERED_FROM_ONE_FRAME),
        (Condition.CAPTIONS, thresholds.max_captions_rate, Reason.ANSWERED_FROM_CAPTIONS),
    ):
        if condition in found and found[condition].rate > most:
            return Verdict(reason=reason, detail=_shown(found[condition]))
    seen = [found[condition] for condition in (Condition.FULL, Condition.EVIDENCE) if condition in found]
    if seen and (verdict := _judge_seen(record, seen, thresholds)):
        return verdict
    reasoning = found.get(Condition.REASONING)
    if reasoning and reasoning.rate < thresholds.min_reasoning_rate:
        return Verdict(reason=Reason.REASONING_UNSUPPORTED, detail=_shown(reasoning))
    rollouts = found.get(Condition.ROLLOUTS)
    # What a policy always or never gets right has no gradient in reinforcement learning; elsewhere it is useful.
    if rollouts and record.split is Split.TRAIN_RL:
        if rollouts.num_right > thresholds.most_right_rollouts:
            return Verdict(reason=Reason.TOO_EASY, detail=_shown(rollouts))
        if rollouts.num_right < thresholds.fewest_right_rollouts:
            return Verdict(reason=Reason.TOO_HARD, detail=_shown(rollouts))
    return None


def _judge_seen(record: QuestionRecord, seen: Sequence[PassRate], thresholds: Thresholds) -> Verdict | None:
    """Judge a question by its answers with the video shown."""
    shown = ", ".join(_shown(rate) for rate in seen)
    passes = max(rate.rate for rate in seen) >= thresholds.min_seen_rate
    if record.options and all(rate.num_chosen for rate in seen):
        num_asked = sum(rate.num_asked for rate in seen)
        chosen = [sum(counts) for counts in zip(*(rate.num_chosen for rate in seen), strict=True)]
        right = LETTERS.index(record.answer)
        rival = max(count for place, count in enumerate(chosen) if place != right)
        if rival >= thresholds.min_seen_rate * num_asked:
            other = LETTERS[chosen.index(rival)]
            return Verdict(reason=Reason.ANSWERED_OTHERWISE, detail=f"{rival} of {num_asked} chose {other}; {shown}")
        if rival >= thresholds.min_rival_rate * num_asked and chosen[right] + rival >= _SHARE_OF_TWO * num_asked:
            return Verdict(reason=Reason.AMBIGUOUS, detail=f"{rival} of {num_asked} chose another option; {shown}")
    return None if passes else Verdict(reason=Reason.NOT_ANSWERABLE, detail=shown)


def _shown(rate: PassRate) -> str:
    return f"{rate.condition}: {rate.num_right} of {rate.num_asked} right"
