"""One row of a published table as a question, by its layout.

A field that the layout needs and the row lacks means another layout, and is an error that names both. Answers are
letters, indices from 0 or texts; which, the layout says.
"""

import math
import re
from collections.abc import Iterator, Sequence
from typing import cast

from longrl_files.messages import visible
from longvideo_reason_data.benchmarks.layouts import AnswerForm, BenchmarkLayout, Names, SeriesRule
from longvideo_reason_data.benchmarks.questions import BenchmarkQuestion
from longvideo_reason_data.benchmarks.rows import QUESTION_FIELDS, words_of
from longvideo_reason_data.records.answers import LETTERS
from longvideo_reason_data.tables import Row

RELEVANCE = "relevance"
CHAINS = ("[1,2,3,4]", "[1,[2,3],4]", "[[1,2],3,4]")
"""The chains of Video-MME-v2's logic groups: which of four questions build on which."""

_TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_LETTER = re.compile(r"[(\[]?\s*([A-Z])\s*[)\]]?(?:\s*[.:].*)?", re.DOTALL)
_SHOWN_FIELDS = 8


class UnfitRowError(ValueError):
    """A row of another layout; the message says what is missing or wrong."""


def read_question_row(layout: BenchmarkLayout, row: Row) -> BenchmarkQuestion:
    """Read a row with one question.

    Returns:
        The question; its id is empty where the layout has none.

    Raises:
        UnfitRowError: A field is missing or of another kind.
    """
    question, options = words_of(row)
    if question is None:
        raise _missing(row, QUESTION_FIELDS)
    options = tuple(option for option in options if option != layout.no_option)
    if len(options) > len(LETTERS):
        raise UnfitRowError(f"{len(options)} options, expected at most {len(LETTERS)}")
    answer, flaw = _read_answer(layout, row, options)
    ids = [_text(row, names) for names in layout.ids]
    video = _require_text(row, layout.video)
    return BenchmarkQuestion(
        question_id="/".join(filter(None, ids)) if all(ids) else "",
        video=layout.video_form.format(video),
        question=question.strip(),
        options=options,
        answer=answer,
        flaw=flaw,
        groups={name: values for name, names in layout.groups.items() if (values := _values(row, names))},
        series="\n".join(_require_text(row, names) for names in layout.series),
        structure=_read_structure(row) if layout.series_rule is SeriesRule.NONLINEAR else "",
        subtitle_start_seconds=_seconds(row.get(layout.subtitle_start)),
    )


def read_subtitle_name(layout: BenchmarkLayout, row: Row) -> str:
    """The subtitle file of a row's question, as published; empty if the layout or the row has none."""
    name = _text(row, layout.subtitle)
    return layout.subtitle_form.format(name) if name else ""


def _read_answer(layout: BenchmarkLayout, row: Row, options: Sequence[str]) -> tuple[str, str]:
    """Find the right option's letter, or the answer to an open question; or nothing, and why."""
    given = _require_text(row, layout.answer)
    tagged = _TAGGED.search(given)
    given = tagged[1].strip() if tagged else given
    if not options:
        return given, ""
    for form in layout.answer_forms:
        if (place := _place(form, given, options)) is not None:
            return LETTERS[place], ""
    forms = " or ".join(layout.answer_forms)
    shown = visible(repr(given), 60)
    return "", f"its answer {shown} is none of its {len(options)} options, expected as {forms}"


def _place(form: AnswerForm, given: str, options: Sequence[str]) -> int | None:
    """The index of the option that an answer of this form names."""
    if form is AnswerForm.TEXT:
        wanted = _plain(given)
        places = [place for place, option in enumerate(options) if _plain(option) == wanted]
        return places[0] if len(places) == 1 else None
    if form is AnswerForm.INDEX:
        place = int(given) if given.isascii() and given.isdigit() else -1
    else:
        match = _LETTER.fullmatch(given.strip())
        place = LETTERS.index(match[1]) if match else -1
    return place if 0 <= place < len(options) else None


def _plain(text: str) -> str:
    return " ".join(text.split()).strip(" .").casefold()


def _read_structure(row: Row) -> str:
    """The rule by which a row's series is scored; empty if another row says it."""
    kind = _text(row, ("group_type",))
    chain = "".join(_text(row, ("group_structure",)).split())
    if kind == RELEVANCE:
        return RELEVANCE
    if not kind and not chain:
        return ""
    if chain not in CHAINS:
        shown = visible(repr(chain), 40)
        raise UnfitRowError(
            f"group_structure is {shown}, expected {' or '.join(CHAINS)}, or the group_type {RELEVANCE}"
        )
    return chain


def _require_text(row: Row, names: Names) -> str:
    text = _text(row, names)
    if not text:
        raise _missing(row, names)
    return text


def _missing(row: Row, names: Names) -> UnfitRowError:
    there = next((name for name in names if name in row), None)
    wanted = " or ".join(repr(name) for name in names)
    if there is not None:
        return UnfitRowError(f"{wanted} is {visible(repr(row[there]), 40)}, expected text")
    found = ", ".join(visible(name, 30) for name in list(row)[:_SHOWN_FIELDS])
    return UnfitRowError(f"no field {wanted}, found {found}")


def _text(row: Row, names: Names) -> str:
    """The text of the first of these fields that has any; empty if none has."""
    return next((text for name in names for text in _texts(row.get(name))), "")


def _values(row: Row, names: Names) -> tuple[str, ...]:
    """All texts of the first of these fields that has any."""
    return next((texts for name in names if (texts := tuple(_texts(row.get(name))))), ())


def _texts(value: object) -> Iterator[str]:
    """The texts in a field: one, several in a list, or the path of a medium; numbers count as texts."""
    if isinstance(value, list | tuple):
        for item in cast(Sequence[object], value):
            yield from _texts(item)
    elif isinstance(value, dict):
        yield from _texts(cast(dict[str, object], value).get("path"))
    elif isinstance(value, bool):
        return
    elif isinstance(value, float):
        if math.isfinite(value):  # a column of whole numbers with gaps has fractions
            yield str(int(value) if value.is_integer() else value)
    elif isinstance(value, str | int) and (text := str(value).strip()):
        yield text


def _seconds(value: object) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else 0.0
