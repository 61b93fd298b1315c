"""What comes from a server, shown within a line and read as JSON."""

import math
from typing import cast

from pydantic_core import from_json

_VALUE_CHARACTERS = 200


def visible(text: str, limit: int = _VALUE_CHARACTERS) -> str:
    """Show text from outside within a line: short, and with every character that doesn't print spelled out."""
    shown = "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii")
        for letter in text[: limit + 1]
    )
    return shown if len(shown) <= limit else f"{shown[: limit - 3]}..."


def parse_json(text: str | bytes) -> object:
    """Parse one JSON value, at most 200 levels deep and with finite numbers.

    Raises:
        ValueError: When it isn't one.
    """
    content = text.encode() if isinstance(text, str) else text
    value = cast(object, from_json(content, allow_inf_nan=False))
    unread = [value]
    while unread:
        found = unread.pop()
        if isinstance(found, float) and not math.isfinite(found):
            raise ValueError("a number is too large")
        if isinstance(found, dict):
            unread.extend(cast(dict[str, object], found).values())
        elif isinstance(found, list):
            unread.extend(cast(list[object], found))
    return value
