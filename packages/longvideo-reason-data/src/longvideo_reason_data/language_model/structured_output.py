"""Answers that have to be JSON of a given form.

A server that knows schemas keeps to them; another is only told in words, and its answer is searched for the object.
Either way the object is held against the schema here, so that the caller meets one kind of answer. Nothing is repaired:
what doesn't fit is invalid, with the place that doesn't.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

from longrl_files.messages import visible

_MOST_DIGITS = 18  # more than seconds, counts or letters have; longer ones don't fit into 64 bits


def ask_in_words(schema: Mapping[str, Any]) -> str:
    """Write the request for JSON of a form, for a server that can't be held to it."""
    return (
        "Answer with one JSON object that fits this JSON schema, and nothing else, no code fence:\n"
        f"{json.dumps(schema, ensure_ascii=False)}"
    )


def read_object(text: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    """Find the JSON object in an answer and hold it against a schema.

    Raises:
        ValueError: When there is none or it doesn't fit; the message is one line.
    """
    from jsonschema import Draft202012Validator, ValidationError

    value = extract_json(text)
    try:
        Draft202012Validator(schema).validate(value)
    except ValidationError as error:
        place = visible(".".join(str(step) for step in error.absolute_path), 80) or "the object"
        raise ValueError(f"the answer doesn't fit the schema at {place}: {visible(error.message, 160)}") from error
    except RecursionError as error:
        raise ValueError("the answer is nested too deeply") from error
    return value


def extract_json(text: str) -> dict[str, Any]:
    """Find the JSON object in an answer, also behind reasoning, inside a code fence, or among other words.

    Returns:
        The largest object that can be read; its numbers are finite, and its text can be written again.

    Raises:
        ValueError: When there is none.
    """
    said = text.rpartition("</think>")[2]
    decoder = json.JSONDecoder(parse_constant=_refuse_constant, parse_float=_read_float, parse_int=_read_integer)
    found: list[tuple[int, dict[str, Any]]] = []
    start = said.find("{")
    num_tried = 0
    while start >= 0 and num_tried < 200:  # an answer of nothing but braces must not cost quadratic time
        num_tried += 1
        try:
            value, end = decoder.raw_decode(said, start)
        except (ValueError, RecursionError):
            end = start + 1
        else:
            if isinstance(value, dict):
                found.append((end - start, value))
        start = said.find("{", end)
    if not found:
        raise ValueError("the answer holds no JSON object")
    value = max(found, key=lambda item: item[0])[1]
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ValueError("the answer holds half of a character") from error
    return value


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def _read_float(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError("a number is too large")
    return number


def _read_integer(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise ValueError("a number is too large")
    return int(digits)
