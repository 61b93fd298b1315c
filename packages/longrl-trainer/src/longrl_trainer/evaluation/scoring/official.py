"""How benchmarks' own scorers find the answer in a response: reproduced to compare with, mistakes included.

A published number depends on its extraction. Ours is the one grammar of `longvideo_reason_data.records.answers`; these
are those of the benchmarks' repositories or, where they have none, of lmms-eval, which most published numbers come
from. Where a scorer draws a random letter, the expected value is used. A benchmark without an entry is judged by a
language model, or its scorer isn't reproduced here.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from longvideo_reason_data.records.answers import LETTERS

_BEGINNINGS = ("The best answer is", "The correct answer is", "The answer is", "The answer")
_MORE_BEGINNINGS = ("The best option is", "The correct option is", "Best answer:", "Best option:")
_SHORT_BEGINNINGS = ("Final Answer:", "Answer:", "Option:")
_FINAL = "Therefore the final answer is:"
_MARKS = ",.!?;:'"


@dataclass(frozen=True, slots=True, kw_only=True)
class OfficialAnswer:
    """What a benchmark's scorer makes of a response.

    Attributes:
        letter: The letter that it reads, or another text; empty if it reads nothing.
        score: 1 for the right letter, otherwise 0; chance where it guesses.
    """

    letter: str
    score: float


OfficialExtraction = Callable[[str, Sequence[str]], str | None]
"""Reads a response to a question with these options; None stands for a random letter."""


def judge_officially(benchmark: str, response: str, options: Sequence[str], answer: str) -> OfficialAnswer | None:
    """Judge a response as the benchmark's scorer does; None if that isn't known here.

    Args:
        benchmark: Name of the benchmark.
        response: The response as generated.
        options: The options in the order in which they were shown.
        answer: The letter of the right one in that order, or the answer to an open question.
    """
    extraction = EXTRACTIONS.get(benchmark)
    if extraction is None:
        return None
    letter = extraction(response, options)
    if letter is None:
        return OfficialAnswer(letter="", score=1 / len(options) if options else 0.0)
    return OfficialAnswer(letter=letter, score=float(bool(answer) and letter == answer))


def _first_letter(letters: str, beginnings: Sequence[str], *, guesses: bool = False) -> OfficialExtraction:
    """The first capital letter of these, anywhere, after phrases that announce it are removed."""

    def extract(response: str, _: Sequence[str]) -> str | None:
        text = response.strip()
        for beginning in beginnings:
            text = text.replace(beginning, "")
        found = next((letter for letter in text if letter in letters), None)
        return found if found is not None or guesses else ""

    return extract


def _answer_block(response: str, _: Sequence[str]) -> str:
    """The content of the answer block, or else the whole response; compared as it is (LongVideo-Reason)."""
    pattern = rf"<answer>{_FINAL} (.*?)</answer>" if _FINAL in response else r"<answer>(.*?)</answer>"
    match = re.search(pattern, response, re.DOTALL)
    return (match[1] if match else response).strip()


def _first_in_brackets(response: str, _: Sequence[str]) -> str:
    """The first character of the first word, or of that after the first bracket before a closing one (LVBench)."""
    text = response.strip().split(")")[0].strip()
    if "(" in text:
        text = text.split("(")[1].strip()
    return text.split(" ")[0][:1]


def _whole_option(response: str, options: Sequence[str]) -> str:
    """Exactly an option with its letter, its text, or its letter (EgoSchema)."""
    for letter, option in zip(LETTERS, options, strict=False):
        lettered = f"{letter}. {option}" if option.endswith(".") else f"{letter}. {option}."
        if response in (lettered, lettered.split(". ")[1], letter):
            return letter
    return ""


def _letter_alone(response: str, _: Sequence[str]) -> str:
    """Exactly a letter (PerceptionTest)."""
    return response if len(response) == 1 else ""


def _any_letter(response: str, _: Sequence[str]) -> str:
    """The first letter of the alphabet that occurs before the first point (VNBench)."""
    text = response.split(".")[0]
    return next((letter for letter in "ABCD" if letter in text), text)


def _last_candidate(response: str, options: Sequence[str]) -> str | None:
    """The last letter in brackets, or before a space or point, or the last option's text (NExT-QA, as in MMMU)."""
    for mark in _MARKS:
        response = response.strip(mark)
    text = f" {response} "
    lettered = dict(zip(LETTERS, options, strict=False))
    for form, place in (("({})", "({})"), ("{} ", " {} "), ("{}.", " {} ")):
        found = [letter for letter in lettered if form.format(letter) in text]
        if found:
            return max(found, key=lambda letter: text.rfind(place.format(letter)))
    if len(response.split()) <= 5:
        return None
    lowered = text.lower()
    named = [letter for letter, option in lettered.items() if option.lower() in lowered]
    return max(named, key=lambda letter: lowered.rfind(lettered[letter].lower())) if named else None


EXTRACTIONS: Mapping[str, OfficialExtraction] = {
    # Two commas are missing in Video-MME's list, so it doesn't remove "Best answer:" and reads a B.
    "videomme": _first_letter("ABCD", _BEGINNINGS),
    "mlvu": _first_letter("ABCD", _BEGINNINGS),
    "videomme_v2": _first_letter(
        "ABCDEFGH", (*_SHORT_BEGINNINGS[:1], *_BEGINNINGS, *_MORE_BEGINNINGS, *_SHORT_BEGINNINGS[1:])
    ),
    "longvideobench": _first_letter("ABCDE", (*_BEGINNINGS, *_MORE_BEGINNINGS), guesses=True),
    "longvideo_reason": _answer_block,
    "lvbench": _first_in_brackets,
    "egoschema": _whole_option,
    "nextqa": _last_candidate,
    "perceptiontest": _letter_alone,
    "vnbench": _any_letter,
}
"""The extractions by benchmark."""
