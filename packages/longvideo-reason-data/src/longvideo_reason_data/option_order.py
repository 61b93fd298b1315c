"""Giving every letter the same share of right answers, and keeping the reasoning true to the new order.

Language models put the right option first far too often, and a policy soon learns that instead of the video. Options
are therefore put in another order, from a seed and the question's id. Letters that the reasoning mentions are rewritten
with them; when a letter's meaning isn't certain, the question is refused rather than spoilt.
"""

import random
import re
from collections.abc import Mapping, Sequence

from longvideo_reason_data.answers import LETTERS
from longvideo_reason_data.questions import QuestionDraft

_NAMED = re.compile(
    r"(?P<before>\b(?i:options?|choices?|letters?|answer(?: is|:)?(?: option)?)\s{1,2}[(\"']?)"
    r"(?P<letter>[ABCD])(?![\w'’])"
    r"|(?P<open>\()(?P<inside>[ABCD])(?=\))"
    r"|(?P<alone>(?<![\w'’])[ABCD])(?= is (?:\w+ )?(?:correct|right|wrong|false|incorrect)\b)"
)
_BARE = re.compile(r"(?<![\w'’])(?:[BCD](?![\w'’])|A(?![\w'’])(?! [a-z]))")


class UnclearLetterError(Exception):
    """The reasoning holds a capital letter that may or may not stand for an option."""


def balanced_letters(question_ids: Sequence[str], *, seed: int) -> dict[str, str]:
    """Choose which letter shall be right for each question.

    Args:
        question_ids: All questions that should be balanced together, in any order.
        seed: Another seed gives another choice.

    Returns:
        A letter for each id. Each of the four is used equally often, give or take one.
    """
    shuffled = sorted(question_ids)
    generator = random.Random(f"letters:{seed}")
    generator.shuffle(shuffled)
    first = generator.randrange(4)
    return {question_id: LETTERS[(first + place) % 4] for place, question_id in enumerate(shuffled)}


def reorder_options(draft: QuestionDraft, letter: str, *, seed: str) -> QuestionDraft:
    """Put the options of a question in another order.

    Args:
        draft: The question.
        letter: Where the right option shall stand.
        seed: Decides the order of the others.

    Returns:
        The same question in the new order, with its reasoning rewritten.

    Raises:
        UnclearLetterError: When the reasoning mentions letters in a way that can't be rewritten for certain.
    """
    right = LETTERS.index(draft.answer)
    order = [place for place in range(len(draft.options)) if place != right]
    random.Random(f"order:{seed}").shuffle(order)
    order.insert(LETTERS.index(letter), right)
    new_letters = {LETTERS[old]: LETTERS[new] for new, old in enumerate(order)}
    return draft.model_copy(
        update={
            "options": tuple(draft.options[place] for place in order),
            "answer": letter,
            "reasoning": _rewrite(draft.reasoning, new_letters),
        }
    )


def _rewrite(reasoning: str, new_letters: Mapping[str, str]) -> str:
    """Replace the letters that stand for options."""
    pieces: list[str] = []
    end = 0
    for match in _NAMED.finditer(reasoning):
        between = reasoning[end : match.start()]
        _refuse_unclear(between)
        letter = match["letter"] or match["inside"] or match["alone"]
        pieces += [between, match["before"] or match["open"] or "", new_letters[letter]]
        end = match.end()
    _refuse_unclear(reasoning[end:])
    return "".join([*pieces, reasoning[end:]])


def _refuse_unclear(text: str) -> None:
    if unclear := _BARE.search(text):
        raise UnclearLetterError(
            f"the letter {unclear.group()} in {text[max(0, unclear.start() - 20) : unclear.end() + 20]!r}"
        )
