"""Text from outside in a line of output: short, and unable to move the cursor or begin a line of its own.

A question id, a server's complaint or a file's name may hold escape codes, line feeds or a megabyte. Printed as they
are, they could forge a line of output.
"""

VALUE_CHARACTERS = 200
LINE_CHARACTERS = 399

_OMISSION = " … "


def visible(text: str, limit: int = VALUE_CHARACTERS) -> str:
    r"""Show text from outside within a line.

    Args:
        text: Anything.
        limit: Most characters of the result, at least 20.

    Returns:
        The text with every character that doesn't print spelled out (`\x1b`, `\n`, `\u202e`), cut out of the middle
        if it is longer than `limit`, since both what it is and what to do about it stand at the ends.
    """
    # What is cut anyway isn't spelled out first: the text may be very long.
    shown = text if len(text) <= 2 * limit else text[:limit] + text[-limit:]
    if not shown.isprintable():
        shown = "".join(letter if letter.isprintable() else _spell(letter) for letter in shown)
    if len(shown) <= limit and len(text) <= 2 * limit:
        return shown
    kept = limit - len(_OMISSION)
    head = kept - kept // 3
    return shown[:head] + _OMISSION + shown[-(kept - head) :]


def error_line(error: BaseException | str, mark: str = "error") -> str:
    """Show an error as one line, `error: …`, of at most 399 characters."""
    return visible(f"{mark}: {str(error) or type(error).__name__}", LINE_CHARACTERS)


def _spell(letter: str) -> str:
    return letter.encode("unicode_escape").decode("ascii")
