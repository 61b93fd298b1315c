"""JSON from outside: of bounded depth, with numbers that are finite and text that can be written again.

Python's own reader takes what no other program may have meant: `NaN`, `1e999` as infinity, half of a surrogate pair
that fails when it is written, and an array nested until the stack ends. Here each is an error of reading.
"""

import math
import re
from typing import cast

from pydantic_core import from_json

# A float that overflows has an exponent of three digits or hundreds of digits before the point.
_PERHAPS_INFINITE = re.compile(rb"[eE]\+?\d{3}|\d{300}")
# A backslash and its letter, a whole surrogate pair, or, as a group, half of one.
_ESCAPES = re.compile(
    rb"\\[^u]|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(\\u[dD][89a-fA-F][0-9a-fA-F]{2})"
)
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class UnfitJsonError(ValueError):
    """The text is not JSON, or is JSON that can't be worked with; the message has no line feeds."""


def parse_json(text: str | bytes | memoryview, *, replaces_half_letters: bool = False) -> object:
    """Parse one JSON value.

    Args:
        text: UTF-8, with or without a byte order mark.
        replaces_half_letters: Read an escape of half a surrogate pair, as programs write that cut texts anywhere, as a
            question mark.

    Returns:
        What `json.loads` would return. Nesting ends at 200 levels, pydantic's own limit.

    Raises:
        UnfitJsonError: It isn't JSON, is nested deeper, holds a number that isn't finite, or text that isn't Unicode.
    """
    try:
        content = text.encode() if isinstance(text, str) else bytes(text)
    except UnicodeEncodeError as error:
        raise UnfitJsonError("not valid Unicode") from error
    content = content.removeprefix(_BYTE_ORDER_MARK)
    if replaces_half_letters:
        content = _ESCAPES.sub(lambda match: match[0] if match[1] is None else b"?", content)
    try:
        value = cast(object, from_json(content, allow_inf_nan=False))
    except ValueError as error:
        raise UnfitJsonError(" ".join(str(error).split())) from error
    if _PERHAPS_INFINITE.search(content):
        _refuse_infinite(value)
    return value


def _refuse_infinite(value: object) -> None:
    """Pydantic's reader refuses the word Infinity, but not a number that is too large for a float."""
    open_values = [value]
    while open_values:
        found = open_values.pop()
        if isinstance(found, float) and not math.isfinite(found):
            raise UnfitJsonError("a number is too large")
        if isinstance(found, dict):
            open_values.extend(cast(dict[str, object], found).values())
        elif isinstance(found, list):
            open_values.extend(cast(list[object], found))
