"""Answers that have to be JSON of a given form.

A server that knows schemas keeps to them; another is only told in words, and its answer is searched for the object.
Either way the object is held against the schema here, so that the caller meets one kind of answer. Nothing is repaired:
what doesn't fit is invalid, with the place that doesn't.
"""

import json
from collections.abc import Mapping
from typing import Any


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
        place = ".".join(str(step) for step in error.absolute_path) or "the object"
        words = " ".join(error.message.split())
        raise ValueError(f"the answer doesn't fit the schema at {place}: {words[:160]}") from error
    except RecursionError as error:
        raise ValueError("the answer is nested too deeply") from error
    return value


def extract_json(text: str) -> dict[str, Any]:
    """Find the JSON object in an answer, also behind reasoning, inside a code fence, or among other words.

    Returns:
        The largest object that can be read.

    Raises:
        ValueError: When there is none.
    """
    visible = text.rpartition("</think>")[2]
    decoder = json.JSONDecoder()
    found: list[tuple[int, dict[str, Any]]] = []
    start = visible.find("{")
    num_tried = 0
    while start >= 0 and num_tried < 200:  # an answer of nothing but braces must not cost quadratic time
        num_tried += 1
        try:
            value, end = decoder.raw_decode(visible, start)
        except (json.JSONDecodeError, RecursionError):
            end = start + 1
        else:
            if isinstance(value, dict):
                found.append((end - start, value))
        start = visible.find("{", end)
    if not found:
        raise ValueError("the answer holds no JSON object")
    return max(found, key=lambda item: item[0])[1]
