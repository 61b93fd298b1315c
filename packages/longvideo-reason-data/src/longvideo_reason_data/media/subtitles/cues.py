"""Subtitle cues, text with times: the common form of all subtitle formats.

Live and automatic captions roll: a line is shown again above the next one, so that it occurs two or three times. Here
every line occurs once.
"""

import hashlib
import html
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

_DRAWING = re.compile(r"\{[^}]*\\p[1-9][^}]*\}.*?(?:\{[^}]*\\p0[^}]*\}|$)", re.DOTALL)
_MARKUP = re.compile(r"\{\\[^}]*\}|</?[A-Za-z][^>]*>|<\d[\d:.]*>")
_TOUCHING_SECONDS = 0.1  # between consecutive cues without a pause
_SENTENCE_ENDS = (".", "!", "?", "…", "。", "！", "？")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cue:
    """Text, and when it is shown.

    Attributes:
        start_seconds: Since the first frame of the video; negative if before it.
        end_seconds: When it disappears; equal to the start if it has no duration.
        text: One line without markup.
    """

    start_seconds: float
    end_seconds: float
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownLines:
    """The raw content of subtitles: lines with markup, and when they are shown in seconds."""

    start_seconds: float
    end_seconds: float
    lines: tuple[str, ...]


def make_cues(shown: Iterable[ShownLines]) -> tuple[Cue, ...]:
    """Remove the markup, and the repetitions of rolling captions.

    Returns:
        In order of time; cues without text are omitted.
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
    """Join what is said in a time range; every cue belongs to the range that contains its middle.

    The same text twice in a row is included once.
    """
    lines: list[str] = []
    for cue in cues:
        middle = (cue.start_seconds + cue.end_seconds) / 2
        if start_seconds <= middle < end_seconds and cue.text not in lines[-1:]:
            lines.append(cue.text)
    return " ".join(lines)


def digest_cues(cues: Sequence[Cue]) -> str:
    """Compute a digest of all text and times."""
    lines = "\n".join(f"{cue.start_seconds:.3f} {cue.end_seconds:.3f} {cue.text}" for cue in cues)
    return hashlib.sha256(lines.encode()).hexdigest()


def _plain(item: ShownLines) -> ShownLines:
    text = html.unescape(_MARKUP.sub("", _DRAWING.sub("", "\n".join(item.lines)).replace("\\h", " ")))
    lines = tuple(words for line in text.split("\n") if (words := " ".join(line.split())))
    end = max(item.start_seconds, item.end_seconds)
    return ShownLines(start_seconds=item.start_seconds, end_seconds=end, lines=lines)


def _new_words(before: ShownLines, item: ShownLines) -> Iterator[str]:
    """Remove the top lines that were already shown: others are below, or there was no pause."""
    touching = item.start_seconds - before.end_seconds <= _TOUCHING_SECONDS
    overlap = next((n for n in range(len(item.lines), 0, -1) if before.lines[-n:] == item.lines[:n]), 0)
    if overlap and (touching or overlap < len(item.lines)):
        yield from item.lines[overlap:]
        return
    first, *rest = item.lines
    # A line that appears word by word is repeated with more words.
    painted = before.lines[-1] if before.lines else ""
    if touching and painted and first.startswith(painted + " ") and not painted.endswith(_SENTENCE_ENDS):
        first = first[len(painted) + 1 :]
    yield first
    yield from rest
