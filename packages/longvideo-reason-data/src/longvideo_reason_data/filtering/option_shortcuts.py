"""Options whose wording gives the answer away: in one question, and over a whole dataset.

Some shortcuts only show over many questions: if the longest option is right in half of them, a policy learns to count
letters instead of watching. So simple strategies that ignore the video are applied to all questions, and those that are
right more often than chance allows are reported.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from longvideo_reason_data.records.answers import LETTERS
from longvideo_reason_data.records.drop_reasons import Reason
from longvideo_reason_data.records.record import QuestionRecord

# An option may be this many times as long as the longest of the others before its length is a cue.
_LONGEST_RATIO = 1.5
_SHORTEST_TELLING = 20  # characters; among brief options length is no cue
# How many standard deviations above chance a strategy may win; four happen once in thirty thousand.
_MOST_DEVIATIONS = 4.0

_PUNCTUATION = re.compile(r"[^\w\s]")
_ABOUT_OPTIONS = re.compile(
    r"\b(?:(?:all|none|both|neither) of (?:the|these|them)|[ABCD] (?:and|or) [ABCD]\b)", re.IGNORECASE
)


def check_options(question: str, options: Sequence[str], right: int) -> list[Reason]:
    """Find options that are equal, that refer to each other, or that give the answer away.

    Args:
        question: The question.
        options: Its options; none for an open question, which has no such problems.
        right: Index of the right one.
    """
    if not options:
        return []
    reasons: list[Reason] = []
    plain = [plain_words(option) for option in options]
    if len(set(plain)) < len(plain) or "" in plain:
        reasons.append(Reason.OPTIONS_ALIKE)
    if any(_ABOUT_OPTIONS.search(option) for option in options):
        reasons.append(Reason.OPTION_ABOUT_OPTIONS)
    others = [len(option) for place, option in enumerate(plain) if place != right]
    if len(plain[right]) > _SHORTEST_TELLING and len(plain[right]) > _LONGEST_RATIO * max(others):
        reasons.append(Reason.ANSWER_IS_LONGEST)
    asked = f" {plain_words(question)} "
    named = [place for place, option in enumerate(plain) if option and f" {option} " in asked]
    if named == [right]:
        reasons.append(Reason.ANSWER_IN_QUESTION)
    elif _echoes(asked, plain, right):
        reasons.append(Reason.ANSWER_ECHOES_QUESTION)
    if _stands_out(options, right):
        reasons.append(Reason.ANSWER_STANDS_OUT)
    return reasons


def find_shortcuts(records: Sequence[QuestionRecord]) -> list[str]:
    """Apply strategies that ignore the video, and describe those that are right too often.

    Returns:
        One line per strategy that is right more often than chance allows; none for a good dataset.
    """
    choices = [record for record in records if record.options]
    tallies = {name: _Tally() for name in _STRATEGIES}
    for record in choices:
        asked = set(plain_words(record.question).split())
        words = [set(plain_words(option).split()) for option in record.options]
        for name, score in _STRATEGIES.items():
            tallies[name].count(score(record.options, words, asked), LETTERS.index(record.answer))
    return [
        f"choosing {name} is right in {tally.won:.0f} of {len(choices)} questions, by chance it would be "
        f"{tally.expected:.0f}; rewrite or drop such questions"
        for name, tally in tallies.items()
        if tally.won - tally.expected > _MOST_DEVIATIONS * math.sqrt(tally.variance) and tally.variance
    ]


@dataclass(slots=True)
class _Tally:
    """How often a strategy is right, how often it would be by chance, and the variance of that."""

    won: float = 0.0
    expected: float = 0.0
    variance: float = 0.0

    def count(self, scores: Sequence[float], right: int) -> None:
        """Count one question, unless all its options have the same score."""
        best = _best_places(scores)
        if len(best) == len(scores):
            return
        # Of several best options one is drawn: each has the same chance of being right.
        chance = 1 / len(scores)
        self.won += (right in best) / len(best)
        self.expected += chance
        self.variance += chance / len(best) - chance**2


def plain_words(text: str) -> str:
    """Return the words of a text without case and punctuation."""
    return " ".join(_PUNCTUATION.sub(" ", text).casefold().split())


def _content_words(plain: str) -> set[str]:
    return {word for word in plain.split() if len(word) > 3}


def _echoes(asked: str, plain: Sequence[str], right: int) -> bool:
    """Return whether two or more words of the question are in the right option and none in the others."""
    asked_words = _content_words(asked)
    shared = [len(_content_words(option) & asked_words) for option in plain]
    return shared[right] >= 2 and not any(count for place, count in enumerate(shared) if place != right)


def _stands_out(options: Sequence[str], right: int) -> bool:
    """Return whether only the right option has a different form."""
    forms: list[Callable[[str], bool]] = [
        lambda option: option.rstrip()[-1:] in ".!",
        lambda option: option.lstrip()[:1].isupper(),
        lambda option: '"' in option or "(" in option,
    ]
    for form in forms:
        has = [form(option) for option in options]
        if has.count(has[right]) == 1:
            return True
    return False


def _best_places(scores: Sequence[float]) -> list[int]:
    best = max(scores)
    return [place for place, score in enumerate(scores) if score == best]


def _lengths(options: Sequence[str], words: Sequence[set[str]], asked: set[str]) -> list[float]:
    return [len(option) for option in options]


def _brevities(options: Sequence[str], words: Sequence[set[str]], asked: set[str]) -> list[float]:
    return [-len(option) for option in options]


def _echoed(options: Sequence[str], words: Sequence[set[str]], asked: set[str]) -> list[float]:
    return [len(asked & own) for own in words]


def _typical(options: Sequence[str], words: Sequence[set[str]], asked: set[str]) -> list[float]:
    """Score how many words an option shares with the others: distractors are often variations of the answer."""
    return [sum(len(own & other) for other in words) for own in words]


_STRATEGIES: Mapping[str, Callable[[Sequence[str], Sequence[set[str]], set[str]], list[float]]] = {
    "the longest option": _lengths,
    "the shortest option": _brevities,
    "the option with most words of the question": _echoed,
    "the option most like the others": _typical,
}
