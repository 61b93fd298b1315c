"""Compares mathematical answers with math-verify, as a process of its own; run by `mathematics`, never imported there.

Reads JSON lines with `given` and `right`; writes one with `is_right`, or with `error` if they can't be compared.
Its memory is bounded; its time is its parent's to bound, since math-verify's own time-outs need signals.
"""

import json
import re
import resource
import sys
from typing import Any

from longrl_files.json_text import parse_json

MOST_MEMORY_BYTES = 4 * 1024**3


def main() -> None:
    """Answer until there are no more questions."""
    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY_BYTES, MOST_MEMORY_BYTES))
    from math_verify import parse, verify

    def read(text: str) -> list[Any]:
        no_signals: Any = None
        return parse(mark(text), fallback_mode="no_fallback", parsing_timeout=no_signals)

    answers = sys.stdout
    sys.stdout = sys.stderr  # whatever a library prints is no answer
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        question: Any = parse_json(line)
        try:
            right = read(question["right"])
            given = read(question["given"])
            is_right = bool(given) and verify(right, given, timeout_seconds=None, raise_on_error=True)
        except Exception as error:  # anything may come out of an expression
            answer: dict[str, object] = {"error": type(error).__name__}
        else:
            answer = {"is_right": is_right} if right else {"error": "the right answer can't be read"}
        print(json.dumps(answer), file=answers, flush=True)


def mark(text: str) -> str:
    """Mark an expression without words as one, since LaTeX is only looked for between marks."""
    has_marks = any(sign in text for sign in ("$", r"\boxed", r"\(", r"\["))
    has_words = re.search(r"[A-Za-z]{2,}", re.sub(r"\\[A-Za-z]+", "", text))
    return text if has_marks or has_words else rf"\boxed{{{text}}}"


if __name__ == "__main__":
    main()
