"""Whether reasoning is about its video and leads to its answer, judged by its text alone."""

import re
from collections.abc import Sequence

from longvideo_reason_data.records.answers import ParseStatus, parse_response
from longvideo_reason_data.records.drop_reasons import Reason

SHORTEST_WORDS = 7
# Models round; a time this far after the end is still the end.
TOLERANCE_SECONDS = 1.0

_CLOCK = re.compile(r"(?<![\d:.])(?:(\d{1,2}):)?(\d{1,3}):([0-5]\d(?:\.\d{1,6})?)(?![\d:])")
_NUMBER = r"(\d{1,6}(?:\.\d{1,6})?)"
_UNIT = r"\s?(?:s|sec|secs|seconds?)\b"
_SECONDS = re.compile(rf"(?<![\w.:]){_NUMBER}{_UNIT}", re.IGNORECASE)
_SECONDS_RANGE = re.compile(rf"(?<![\w.:]){_NUMBER}\s?(?:-|–|—|to|and)\s?{_NUMBER}{_UNIT}", re.IGNORECASE)
_MINUTES = re.compile(rf"(?<![\w.:]){_NUMBER}\s?(?:min|mins|minutes?)\b", re.IGNORECASE)
_TAGS = re.compile(r"</?(?:think|answer)>", re.IGNORECASE)


def times_in(text: str) -> list[float]:
    """Find the times that a text mentions, in seconds: `12.5 s`, `3 to 5 seconds`, `2 minutes`, `1:02:03`."""
    clocks = _CLOCK.findall(text) if ":" in text else []
    found = [int(hours or 0) * 3600 + int(minutes) * 60 + float(seconds) for hours, minutes, seconds in clocks]
    for start, end in _SECONDS_RANGE.findall(text):
        found += [float(start), float(end)]
    found += [float(number) for number in _SECONDS.findall(text)]
    found += [60 * float(number) for number in _MINUTES.findall(text)]
    return sorted(set(found))


def check_reasoning(
    reasoning: str, options: Sequence[str], answer: str, duration_seconds: float | None
) -> list[Reason]:
    """Check that the reasoning isn't empty, is about this video and doesn't contradict the answer.

    Args:
        reasoning: The reasoning.
        options: The options of the question; empty for an open one, whose conclusion isn't checked.
        answer: The right letter or text.
        duration_seconds: Length of the video; None if there are only images, which have no times.
    """
    reasons: list[Reason] = []
    if len(reasoning.split()) < SHORTEST_WORDS:
        reasons.append(Reason.REASONING_TOO_SHORT)
    if duration_seconds is not None:
        times = times_in(reasoning)
        if not times:
            reasons.append(Reason.REASONING_WITHOUT_TIMES)
        elif times[-1] > duration_seconds + TOLERANCE_SECONDS:
            reasons.append(Reason.REASONING_TIME_OUTSIDE)
    if _TAGS.search(reasoning):
        reasons.append(Reason.REASONING_HAS_TAGS)
    if options:
        concluded = parse_response(reasoning, options)
        if concluded.status is ParseStatus.AMBIGUOUS or concluded.letter not in (None, answer):
            reasons.append(Reason.REASONING_CONTRADICTS)
    return reasons
