"""The questions in the rows of published tables, whatever the benchmark.

A row is a question, or a video with its questions in a list or under names (`{"qa1": {…}, "qa2": {…}}`). Options are in
one field, in one field each, or at the end of the question. The module is independent of what else a row has.
"""

from collections.abc import Iterator
from typing import cast

from longvideo_reason_data.records.options import read_options, split_options
from longvideo_reason_data.tables import Row

QUESTION_FIELDS = ("question", "problem", "query")
QUESTION_KEY = "question_key"
"""Name under which a question gets its key among the named questions of a video."""

_NESTED = ("qa", "qas", "qa_pairs", "questions", "mc_question", "mcq")


def questions_of(row: Row) -> Iterator[Row]:
    """Yield the questions of a row: itself, or those inside it, each with the fields that all share."""
    nested = next((found for name in _NESTED if (found := _nested_rows(row.get(name)))), None)
    if nested is None or any(row.get(name) for name in QUESTION_FIELDS):
        yield row
        return
    shared = {name: value for name, value in row.items() if name not in _NESTED}
    for question in nested:
        yield {**shared, **question}


def words_of(row: Row) -> tuple[str | None, tuple[str, ...]]:
    """Read a question and its options, without letters; None for a row without a question."""
    question = next((value for name in QUESTION_FIELDS if isinstance(value := row.get(name), str) and value), None)
    options = read_options(row)
    if question is not None:
        bare, behind = split_options(question)
        # As separate options, or repeated there.
        if behind and options in ((), behind):
            return bare, behind
    return question, options


def _nested_rows(value: object) -> list[Row]:
    """The rows in a field: a list of them, or rows by their names; in a column, names that a row lacks are None."""
    if isinstance(value, dict):
        named = {name: item for name, item in cast(dict[str, object], value).items() if item is not None}
        if not all(isinstance(item, dict) for item in named.values()):
            return []
        return [{QUESTION_KEY: name, **cast(Row, item)} for name, item in named.items()]
    rows = cast(list[object], value) if isinstance(value, list) else []
    return cast(list[Row], rows) if all(isinstance(item, dict) for item in rows) else []
