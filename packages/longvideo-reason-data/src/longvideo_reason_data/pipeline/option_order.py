"""Gives every letter the same share of right answers, and keeps the reasoning consistent with the new order.

Language models put the right option first far too often, and a policy soon learns that instead of the video. Options
are therefore reordered, from a seed and the question's id. Letters in the reasoning are rewritten accordingly; if a
letter's meaning isn't certain, the question is refused rather than corrupted.
"""

import random
import re
from collections.abc import Mapping, Sequence
from typing import TypeVar

from longvideo_reason_data.records.answers import LETTERS
from longvideo_reason_data.records.drafts import QuestionDraft
from longvideo_reason_data.records.record import QuestionRecord, Split

Question = TypeVar("Question", QuestionDraft, QuestionRecord)

_NAMED = re.compile(
    r"(?P<before>\b(?i:options?|choices?|letters?|answer(?: is|:)?(?: option)?)\s{1,2}[(\"']?)"
    r"(?P<letter>[ABCD])(?![\w'’])"
    r"|(?P<open>\()(?P<inside>[ABCD])(?=\))"
    r"|(?P<alone>(?<![\w'’])[ABCD])(?= is (?:\w+ )?(?:correct|right|wrong|false|incorrect)\b)"
)
_BARE = re.compile(r"(?<![\w'’])(?:[BCD](?![\w'’])|A(?![\w'’])(?! [a-z]))")


class UnclearLetterError(Exception):
    """The reasoning contains a capital letter that may or may not denote an option."""


def balanced_letters(question_ids: Sequence[str], *, seed: int) -> dict[str, str]:
    """Choose the right letter for each question.

    Args:
        question_ids: All questions that should be balanced together, in any order.
        seed: Another seed gives another choice.

    Returns:
        A letter for each id. The four are used equally often, up to a difference of one.
    """
    shuffled = sorted(question_ids)
    generator = random.Random(f"letters:{seed}")
    generator.shuffle(shuffled)
    first = generator.randrange(4)
    return {question_id: LETTERS[(first + place) % 4] for place, question_id in enumerate(shuffled)}


def reorder_options(question: Question, letter: str, *, seed: str) -> Question:
    """Reorder the options of a question, and update everything that counts or names them.

    Args:
        question: A draft or a record, with options.
        letter: The letter of the right option.
        seed: Determines the order of the others.

    Returns:
        The same question in the new order, with its reasoning rewritten.

    Raises:
        UnclearLetterError: When the reasoning mentions letters in a way that can't be rewritten for certain.
    """
    right = LETTERS.index(question.answer)
    order = [place for place in range(len(question.options)) if place != right]
    random.Random(f"order:{seed}").shuffle(order)
    order.insert(LETTERS.index(letter), right)
    new_letters = {LETTERS[old]: LETTERS[new] for new, old in enumerate(order)}
    changes: dict[str, object] = {
        "options": tuple(question.options[place] for place in order),
        "answer": letter,
        "reasoning": _rewrite(question.reasoning, new_letters),
    }
    if isinstance(question, QuestionRecord):
        changes["pass_rates"] = tuple(
            rate.model_copy(update={"num_chosen": tuple(rate.num_chosen[place] for place in order if rate.num_chosen)})
            for rate in question.pass_rates
        )
    return question.model_copy(update=changes)


def balance_options(
    records: Sequence[QuestionRecord], *, seed: int
) -> tuple[list[QuestionRecord], list[QuestionRecord]]:
    """Distribute the right answers evenly over the letters in each split.

    Args:
        records: Questions; open ones stay as they are.
        seed: Another seed gives another order.

    Returns:
        The questions with reordered options, and unchanged those whose reasoning can't be rewritten.
    """
    letters: dict[str, str] = {}
    for split in Split:
        names = [record.question_id for record in records if record.split is split and record.options]
        letters |= balanced_letters(names, seed=seed)
    balanced: list[QuestionRecord] = []
    unclear: list[QuestionRecord] = []
    for record in records:
        letter = letters.get(record.question_id)
        try:
            moved = record if letter is None else reorder_options(record, letter, seed=f"{seed}:{record.question_id}")
        except UnclearLetterError:
            unclear.append(record)
        else:
            balanced.append(moved)
    return balanced, unclear


def _rewrite(reasoning: str, new_letters: Mapping[str, str]) -> str:
    """Replace the letters that denote options."""
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
