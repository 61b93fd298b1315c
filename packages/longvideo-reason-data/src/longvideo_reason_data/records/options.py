"""Parses options in published datasets: in one field, in one field each, or at the end of the question.

Letters precede options in many styles: `A. red`, `(A) red`, `a) red`, `**A.** red`, `A: red`; one option per line, or
all in one. They count as options only if they are lettered in order from A. Uncertain cases are not parsed.
"""

import ast
import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

from longrl_files.json_text import UnfitJsonError, parse_json
from longvideo_reason_data.records.answers import LETTERS

_MAX_LITERAL_CHARACTERS = 10_000
_FIELDS = ("options", "option", "candidates", "choices")
# One field for each: `A`, `a0` (NExT-QA), `option0` (LongVideoBench), `option 0` (EgoSchema), `option_a`.
_ONE_FIELD = re.compile(r"(?:([A-Z])|a(\d)|(?:option|choice|answer_choice)[ _]?(?:(\d)|([A-Za-z])))")
_LABEL = r"(?:\*\*)?(?:[(\[（]\s?([A-Za-z])\s?[)\]）]|([A-Za-z])(?:\*\*)?\s?[.):：、．）])(?:\*\*)?"
_LABELLED_LINE = re.compile(rf"\s*(?:[-*•]\s+)?{_LABEL}[.:]?\s*(\S.*)", re.DOTALL)
_LABEL_WITHIN = re.compile(
    r"(?<!\S)(?:\*\*)?(?:[(\[（]([A-Za-z])[)\]）]|([A-Z])(?:\*\*)?[.):：、．）]|([a-z])[)）])(?:\*\*)?[.:]?\s+"
)
_INSTRUCTION = re.compile(
    r"\s*(?:\W*(?:please |now |only )*(?:answer|select|choose|pick|respond|reply|give|provide|output|think)\b.*"
    r"|(?:the |your )?(?:best |correct |final )?answer(?: is)?\s*:?)\s*",
    re.IGNORECASE,
)


def read_options(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Read the options of a row from its fields, without their letters; none when it has no such fields."""
    for name in _FIELDS:
        if options := _options_of(row.get(name)):
            return options
    found: dict[int, str] = {}
    for name, value in row.items():
        match = _ONE_FIELD.fullmatch(name)
        if match and isinstance(value, str | int | float) and str(value).strip():
            label = next(group for group in match.groups() if group)
            found[int(label) if label.isdigit() else LETTERS.index(label.upper())] = str(value)
    is_whole = len(found) > 1 and max(found) == len(found) - 1
    return remove_letters([found[place] for place in sorted(found)]) if is_whole else ()


def split_options(text: str) -> tuple[str, tuple[str, ...]]:
    """Remove options from the end of a question, and an instruction such as "Answer with the letter." after them.

    Returns:
        The question and its options; the unchanged text and no options if none can be parsed.
    """
    lines = [line for line in text.split("\n") if line.strip()]
    while lines and _INSTRUCTION.fullmatch(lines[-1]) and any(map(_label_of, lines[:-1])):
        lines.pop()
    starts = [place for place, line in enumerate(lines) if _label_of(line) == "A"]
    if starts and starts[-1] and len(lines) - starts[-1] > 1:
        first = starts[-1]
        if options := remove_letters(lines[first:], only_lettered=True):
            return "\n".join(lines[:first]).strip(), options
    before, options = _split_line("\n".join(lines))
    return (before, options) if before and len(options) > 1 else (text, ())


def remove_letters(options: Sequence[str], *, only_lettered: bool = False) -> tuple[str, ...]:
    """Remove the letters from options, if every option has one.

    Args:
        options: The options as given.
        only_lettered: Whether options count only if all are lettered.
    """
    matches = [_LABELLED_LINE.fullmatch(option) for option in options]
    if options and all(
        match and _letter(match.groups()[:2]) == letter for match, letter in zip(matches, LETTERS, strict=False)
    ):
        return tuple(_without_stars(match[3]) for match in matches if match)
    return () if only_lettered else tuple(option.strip() for option in options)


def _options_of(value: object) -> tuple[str, ...]:
    """Read a field with all options: a list, a table by letters, or a text with either of them or with lines."""
    if isinstance(value, str):
        text = value.strip()
        if text[:1] in ("[", "{"):
            return _options_of(_literal(text))
        return split_options(f"?\n{text}")[1]
    if isinstance(value, dict):
        table = cast(dict[str, object], value)
        if isinstance(table.get("text"), list):  # next to their labels
            return _options_of(table["text"])
        value = [table[key] for key in sorted(table) if table[key] is not None]
    if not isinstance(value, list | tuple):
        return ()
    options = [option for option in cast(Sequence[object], value) if option is not None]
    return remove_letters([str(o) for o in options]) if all(isinstance(o, str | int | float) for o in options) else ()


def _literal(text: str) -> object:
    """Read a list or table that was written into a cell, as JSON or as Python writes it."""
    try:
        return parse_json(text)
    except UnfitJsonError:
        pass
    if len(text) > _MAX_LITERAL_CHARACTERS:
        return None
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None


def _split_line(text: str) -> tuple[str, tuple[str, ...]]:
    """Remove options from the end of a text that has them in one line: from the last A, each letter once, in order."""
    labels = list(_LABEL_WITHIN.finditer(text))
    starts = [place for place, match in enumerate(labels) if _letter(match.groups()) == "A"]
    if not starts:
        return text, ()
    labels = labels[starts[-1] :]
    ends = [*(match.start() for match in labels[1:]), len(text)]
    options = tuple(_without_stars(text[match.end() : end]) for match, end in zip(labels, ends, strict=True))
    if "".join(_letter(match.groups()) for match in labels) != LETTERS[: len(labels)]:
        return text, ()
    if not all(options) or any("\n" in option for option in options):
        return text, ()
    return text[: labels[0].start()].strip(), options


def _label_of(line: str) -> str:
    match = _LABELLED_LINE.fullmatch(line)
    return _letter(match.groups()[:2]) if match else ""


def _letter(groups: Sequence[str | None]) -> str:
    return next(group for group in groups if group).upper()


def _without_stars(text: str) -> str:
    """Remove the end of bold markup that began before the letter."""
    text = text.strip()
    return text.removesuffix("**").rstrip() if text.count("**") % 2 else text
