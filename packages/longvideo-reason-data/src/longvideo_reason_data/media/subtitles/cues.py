"""Words and when they are shown: what subtitles of every form come to.

Live and automatic captions roll: a line is shown again above the next one, so that it is read two or three times. Here
every line is said once.
"""

import hashlib
import html
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

_DRAWING = re.compile(r"\{[^}]*\\p[1-9][^}]*\}.*?(?:\{[^}]*\\p0[^}]*\}|$)", re.DOTALL)
_MARKUP = re.compile(r"\{\\[^}]*\}|</?[A-Za-z][^>]*>|<\d[\d:.]*>")
_TOUCHING_SECONDS = 0.1  # between cues that follow each other without a pause
_SENTENCE_ENDS = (".", "!", "?", "…", "。", "！", "？")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cue:
    """Words, and when they are shown.

    Attributes:
        start_seconds: Since the first frame of the video; below 0 when before it.
        end_seconds: When they vanish; the start, when they are shown for no time at all.
        text: One line without markup.
    """

    start_seconds: float
    end_seconds: float
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownLines:
    """What stands in subtitles: lines with markup, and when they are shown in seconds."""

    start_seconds: float
    end_seconds: float
    lines: tuple[str, ...]


def make_cues(shown: Iterable[ShownLines]) -> tuple[Cue, ...]:
    """Take off the markup and what rolling captions repeat.

    Returns:
        In order of time; cues without words are left out.
    """
    cues: list[Cue] = []
    before = ShownLines(start_seconds=0.0, end_seconds=float("-inf"), lines=())
    for item in sorted(map(_plain, shown), key=lambda item: (item.start_seconds, item.end_seconds)):
        if not item.lines:
            continue
        if text := " ".join(_new_words(before, item)):
            cues.append(Cue(start_seconds=item.start_seconds, end_seconds=item.end_seconds, text=text))
        before = item
    return tuple(cues)


def speech_between(cues: Sequence[Cue], start_seconds: float, end_seconds: float) -> str:
    """Join what is said in a time range; every cue belongs to the one range that holds its middle.

    The same words twice in a row are said once.
    """
    lines: list[str] = []
    for cue in cues:
        middle = (cue.start_seconds + cue.end_seconds) / 2
        if start_seconds <= middle < end_seconds and cue.text not in lines[-1:]:
            lines.append(cue.text)
    return " ".join(lines)


def digest_cues(cues: Sequence[Cue]) -> str:
    """Compute a digest of all that is said and when."""
    lines = "\n".join(f"{cue.start_seconds:.3f} {cue.end_seconds:.3f} {cue.text}" for cue in cues)
    return hashlib.sha256(lines.encode()).hexdigest()


def _plain(item: ShownLines) -> ShownLines:
    text = html.unescape(_MARKUP.sub("", _DRAWING.sub("", "\n".join(item.lines)).replace("\\h", " ")))
    lines = tuple(words for line in text.split("\n") if (words := " ".join(line.split())))
    end = max(item.start_seconds, item.end_seconds)
    return ShownLines(start_seconds=item.start_seconds, end_seconds=end, lines=lines)


def _new_words(before: ShownLines, item: ShownLines) -> Iterator[str]:
    """Leave out the lines at the top that were there before: others are below, or there was no pause."""
    touching = item.start_seconds - before.end_seconds <= _TOUCHING_SECONDS
    overlap = next((n for n in range(len(item.lines), 0, -1) if before.lines[-n:] == item.lines[:n]), 0)
    if overlap and (touching or overlap < len(item.lines)):
        yield from item.lines[overlap:]
        return
    first, *rest = item.lines
    # A line that is painted word by word stands there again with more words.
    painted = before.lines[-1] if before.lines else ""
    if touching and painted and first.startswith(painted + " ") and not painted.endswith(_SENTENCE_ENDS):
        first = first[len(painted) + 1 :]
    yield first
    yield from rest
