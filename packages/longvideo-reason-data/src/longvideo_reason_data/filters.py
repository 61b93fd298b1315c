"""Which drafted questions are unfit, judged by their words alone, and why.

These are the checks that need no model: options that give the answer away, evidence and times that don't exist,
reasoning that leads elsewhere. They can't tell whether a question needs the video; that takes answering it.
"""

import re
from collections.abc import Sequence
from enum import StrEnum

from longvideo_reason_data.answers import LETTERS, ParseStatus, parse_response
from longvideo_reason_data.questions import QuestionDraft


class Reason(StrEnum):
    """Why a question is dropped."""

    OPTIONS_ALIKE = "options_alike"
    OPTION_ABOUT_OPTIONS = "option_about_options"
    ANSWER_IS_LONGEST = "answer_is_longest"
    ANSWER_IN_QUESTION = "answer_in_question"
    EVIDENCE_OUTSIDE = "evidence_outside"
    REASONING_TOO_SHORT = "reasoning_too_short"
    REASONING_WITHOUT_TIMES = "reasoning_without_times"
    REASONING_TIME_OUTSIDE = "reasoning_time_outside"
    REASONING_CONTRADICTS = "reasoning_contradicts"
    REASONING_HAS_TAGS = "reasoning_has_tags"
    MENTIONS_CAPTIONS = "mentions_captions"


# An option may be this many times as long as the longest of the others before its length tells.
_LONGEST_RATIO = 1.5
_SHORTEST_REASONING_WORDS = 8
# Writers round; a time this far behind the end is still the end.
_TOLERANCE_SECONDS = 1.0

_ABOUT_OPTIONS = re.compile(
    r"\b(?:(?:all|none|both|neither) of (?:the|these|them)|[ABCD] (?:and|or) [ABCD]\b)", re.IGNORECASE
)
_ABOUT_CAPTIONS = re.compile(
    r"\bcaptions?\b|\b(?:the|given|provided|these|this) (?:descriptions?|transcripts?)\b", re.IGNORECASE
)
_CLOCK = re.compile(r"(?<![\d:.])(?:(\d{1,2}):)?(\d{1,3}):([0-5]\d(?:\.\d{1,6})?)(?![\d:])")
_NUMBER = r"(\d{1,6}(?:\.\d{1,6})?)"
_UNIT = r"\s?(?:s|sec|secs|seconds?)\b"
_SECONDS = re.compile(rf"(?<![\w.:]){_NUMBER}{_UNIT}", re.IGNORECASE)
_SECONDS_RANGE = re.compile(rf"(?<![\w.:]){_NUMBER}\s?(?:-|–|—|to|and)\s?{_NUMBER}{_UNIT}", re.IGNORECASE)
_MINUTES = re.compile(rf"(?<![\w.:]){_NUMBER}\s?(?:min|mins|minutes?)\b", re.IGNORECASE)


def times_in(text: str) -> list[float]:
    """Find the moments that a text names, in seconds: `12.5 s`, `3 to 5 seconds`, `2 minutes`, `1:02:03`."""
    found = [
        int(hours or 0) * 3600 + int(minutes) * 60 + float(seconds) for hours, minutes, seconds in _CLOCK.findall(text)
    ]
    for start, end in _SECONDS_RANGE.findall(text):
        found += [float(start), float(end)]
    found += [float(number) for number in _SECONDS.findall(text)]
    found += [60 * float(number) for number in _MINUTES.findall(text)]
    return sorted(set(found))


def check_question(draft: QuestionDraft, duration_seconds: float) -> tuple[Reason, ...]:
    """Say everything that is wrong with a question.

    Args:
        draft: The question.
        duration_seconds: Length of its video.

    Returns:
        The reasons to drop it in a fixed order; none for a fit one.
    """
    reasons = _check_options(draft.question, draft.options, LETTERS.index(draft.answer)) if draft.options else []
    latest = duration_seconds + _TOLERANCE_SECONDS
    if any(span.end_seconds > latest or span.start_seconds >= duration_seconds for span in draft.evidence):
        reasons.append(Reason.EVIDENCE_OUTSIDE)
    reasons += _check_reasoning(draft, duration_seconds)
    if _ABOUT_CAPTIONS.search(" ".join((draft.question, draft.reasoning, *draft.options))):
        reasons.append(Reason.MENTIONS_CAPTIONS)
    return tuple(reasons)


def _check_options(question: str, options: Sequence[str], right: int) -> list[Reason]:
    """Look for options that are the same, or that give the answer away."""
    reasons: list[Reason] = []
    plain = [_plain(option) for option in options]
    if len(set(plain)) < len(plain) or "" in plain:
        reasons.append(Reason.OPTIONS_ALIKE)
    if any(_ABOUT_OPTIONS.search(option) for option in options):
        reasons.append(Reason.OPTION_ABOUT_OPTIONS)
    others = [len(option) for place, option in enumerate(plain) if place != right]
    if len(plain[right]) > 20 and len(plain[right]) > _LONGEST_RATIO * max(others):
        reasons.append(Reason.ANSWER_IS_LONGEST)
    asked = f" {_plain(question)} "
    named = [place for place, option in enumerate(plain) if option and f" {option} " in asked]
    if named == [right]:
        reasons.append(Reason.ANSWER_IN_QUESTION)
    return reasons


def _check_reasoning(draft: QuestionDraft, duration_seconds: float) -> list[Reason]:
    """Look at whether the reasoning is one, is about this video and leads to the answer."""
    reasons: list[Reason] = []
    if len(draft.reasoning.split()) < _SHORTEST_REASONING_WORDS:
        reasons.append(Reason.REASONING_TOO_SHORT)
    times = times_in(draft.reasoning)
    if not times:
        reasons.append(Reason.REASONING_WITHOUT_TIMES)
    elif times[-1] > duration_seconds + _TOLERANCE_SECONDS:
        reasons.append(Reason.REASONING_TIME_OUTSIDE)
    if re.search(r"</?(?:think|answer)>", draft.reasoning, re.IGNORECASE):
        reasons.append(Reason.REASONING_HAS_TAGS)
    if draft.options:
        concluded = parse_response(draft.reasoning, draft.options)
        if concluded.status is ParseStatus.AMBIGUOUS or concluded.letter not in (None, draft.answer):
            reasons.append(Reason.REASONING_CONTRADICTS)
    return reasons


def _plain(text: str) -> str:
    """Return the words of a text without case and punctuation."""
    return " ".join(re.sub(r"[^\w\s]", " ", text).casefold().split())
