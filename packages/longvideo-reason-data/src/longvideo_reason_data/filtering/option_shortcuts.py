"""Options whose wording gives the answer away: in one question, and over a whole dataset.

Some shortcuts only show over many questions: if the longest option is right in half of them, a policy learns to count
letters instead of watching. So simple strategies that ignore the video are applied to all questions, and those that are
right more often than chance allows are reported.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence

from longvideo_reason_data.records.answers import LETTERS
from longvideo_reason_data.records.drop_reasons import Reason
from longvideo_reason_data.records.record import QuestionRecord

# An option may be this many times as long as the longest of the others before its length is a cue.
_LONGEST_RATIO = 1.5
_SHORTEST_TELLING = 20  # characters; among brief options length is no cue
# How many standard deviations above chance a strategy may win; four happen once in thirty thousand.
_MOST_DEVIATIONS = 4.0

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
    problems: list[str] = []
    for name, score in _STRATEGIES.items():
        won = expected = variance = 0.0
        for record in choices:
            best = _best_places(score(record.question, record.options))
            if len(best) == len(record.options):
                continue  # the strategy doesn't distinguish the options
            # Of several best options one is drawn: each has the same chance of being right.
            chance = 1 / len(record.options)
            won += (LETTERS.index(record.answer) in best) / len(best)
            expected += chance
            variance += chance / len(best) - chance**2
        if won - expected > _MOST_DEVIATIONS * math.sqrt(variance) and variance:
            problems.append(
                f"choosing {name} is right in {won:.0f} of {len(choices)} questions, by chance it would be "
                f"{expected:.0f}; rewrite or drop such questions"
            )
    return problems


def plain_words(text: str) -> str:
    """Return the words of a text without case and punctuation."""
    return " ".join(re.sub(r"[^\w\s]", " ", text).casefold().split())


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


def _lengths(question: str, options: Sequence[str]) -> list[float]:
    return [len(option) for option in options]


def _brevities(question: str, options: Sequence[str]) -> list[float]:
    return [-len(option) for option in options]


def _echoed(question: str, options: Sequence[str]) -> list[float]:
    asked = set(plain_words(question).split())
    return [len(asked & set(plain_words(option).split())) for option in options]


def _typical(question: str, options: Sequence[str]) -> list[float]:
    """Score how many words an option shares with the others: distractors are often variations of the answer."""
    words = [set(plain_words(option).split()) for option in options]
    return [sum(len(own & other) for other in words) for own in words]


_STRATEGIES: Mapping[str, Callable[[str, Sequence[str]], list[float]]] = {
    "the longest option": _lengths,
    "the shortest option": _brevities,
    "the option with most words of the question": _echoed,
    "the option most like the others": _typical,
}
