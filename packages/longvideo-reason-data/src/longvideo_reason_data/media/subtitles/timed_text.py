"""The text of a subtitle file and its times, read as leniently as by players.

SubRip and WebVTT have lines with two times and `-->` between them, each followed by text. Real files conform to no more
than that: milliseconds, hours or numbers may be missing, a comma may replace a point, coordinates may follow the times,
and spaces may be anywhere. LongVideoBench and Whisper write JSON, Video-MME-v2 JSON lines. FFmpeg and pysubs2 are
stricter and reject such files completely; so these formats are read here, and only SubStation is left to FFmpeg.
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

from longrl_files.json_text import UnfitJsonError, parse_json
from longvideo_reason_data.media.subtitles.cues import ShownLines

_TIME = r"(?:(\d{1,4})\s*:\s*)?(\d{1,3})\s*:\s*(\d{1,2})(?:\s*[.,]\s*(\d{1,9}))?"
_TIMES = re.compile(rf"\s*{_TIME}\s*-+\s?>\s*{_TIME}(?![\d:])")
_ONE_TIME = re.compile(rf"\s*{_TIME}\s*")
_LINE_END = re.compile(r"\r*\n|\r")  # some writers end a line with CR CR LF
_NUMBER = re.compile(r"\s*\d+\s*")
_ARROW = "-->"
_PAUSE_SECONDS = 0.5  # the longest between two words of one line
_SENTENCE_PAUSE_SECONDS = 0.1  # the same after the end of a sentence


class NotTimedTextError(ValueError):
    """A text that isn't subtitles; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedText:
    """The content of a subtitle file.

    Attributes:
        shown: Lines with their times.
        unreadable: Entries without readable times, for instance "line 12"; they are omitted.
    """

    shown: tuple[ShownLines, ...]
    unreadable: tuple[str, ...] = ()


def read_timed_text(text: str) -> TimedText:
    """Read SubRip or WebVTT, whatever the file's name.

    Returns:
        Empty for a file without text, as written by speech recognition if nobody speaks.

    Raises:
        NotTimedTextError: When there is text but no times.
    """
    lines = _LINE_END.split(text)
    is_web = text.lstrip().startswith("WEBVTT")
    matches = [(place, match) for place, line in enumerate(lines) if (match := _TIMES.match(line))]
    unreadable = [place for place, line in enumerate(lines) if _ARROW in line and not _TIMES.match(line)]
    if not matches and (unreadable or (text.strip() and not is_web)):
        raise NotTimedTextError(f"no times such as 00:00:01,000 {_ARROW} 00:00:02,000 in it")
    borders = sorted([*(place for place, _ in matches), *unreadable, len(lines)])
    is_numbered = bool(borders and borders[0] and _is_number(_last_line(lines[: borders[0]])))
    ends = dict(pairwise(borders))
    shown: list[ShownLines] = []
    for place, match in matches:
        block = lines[place + 1 : ends[place]]
        if is_web:
            # An empty line is followed by names of cues and notes.
            block = block[: block.index("")] if "" in block else block
        elif is_numbered and ends[place] < len(lines):
            block = _without_number(block)
        start, end = _seconds(match.groups()[:4]), _seconds(match.groups()[4:])
        shown.append(ShownLines(start_seconds=start, end_seconds=end, lines=tuple(block)))
    return TimedText(shown=tuple(shown), unreadable=tuple(f"line {place + 1}" for place in unreadable))


def read_timed_json(text: str) -> TimedText:
    """Read the JSON of LongVideoBench (`start`, `end` and `line`, or `timestamp` and `text`) or Whisper (`segments`).

    Raises:
        NotTimedTextError: When it is different JSON, or not JSON.
    """
    if not text.strip():
        return TimedText(shown=())
    try:
        content = parse_json(text, replaces_half_letters=True)
    except UnfitJsonError as error:
        raise NotTimedTextError(f"not readable as JSON, {error}") from error
    if isinstance(content, dict):
        content = cast(dict[str, object], content).get("segments")
    if not isinstance(content, list):
        raise NotTimedTextError("no list of lines with start and end in it")
    shown: list[ShownLines] = []
    unreadable: list[str] = []
    for number, item in enumerate(cast(list[object], content)):
        if (lines := _json_lines(item)) is not None:
            shown.append(lines)
        else:
            unreadable.append(f"item {number}")
    if unreadable and not shown:
        raise NotTimedTextError("no list of lines with start and end in it")
    return TimedText(shown=tuple(shown), unreadable=tuple(unreadable))


def read_timed_words(text: str) -> TimedText:
    """Read JSON lines with a word each, as of Video-MME-v2: `text`, `start_time` and `end_time`.

    Words without a pause between them are one line, since a line that only repeats the one before is dropped later.

    Raises:
        NotTimedTextError: When it is something else.
    """
    lines: list[list[ShownLines]] = []
    unreadable: list[str] = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            word = _json_lines(parse_json(line, replaces_half_letters=True))
        except UnfitJsonError as error:
            raise NotTimedTextError(f"line {number} isn't JSON, {error}") from error
        if word is None:
            unreadable.append(f"line {number}")
        elif lines and _goes_on(lines[-1][-1], word):
            lines[-1].append(word)
        else:
            lines.append([word])
    if unreadable and not lines:
        raise NotTimedTextError("no words with text, start_time and end_time in it")
    shown = tuple(
        ShownLines(
            start_seconds=words[0].start_seconds,
            end_seconds=words[-1].end_seconds,
            lines=(" ".join(text for word in words for text in word.lines),),
        )
        for words in lines
    )
    return TimedText(shown=shown, unreadable=tuple(unreadable))


def _goes_on(before: ShownLines, word: ShownLines) -> bool:
    """Whether a word belongs to the line of the one before."""
    pause = word.start_seconds - before.end_seconds
    ends_sentence = bool(before.lines) and before.lines[-1].rstrip().endswith((".", "!", "?"))
    return pause <= (_SENTENCE_PAUSE_SECONDS if ends_sentence else _PAUSE_SECONDS)


def _json_lines(item: object) -> ShownLines | None:
    if not isinstance(item, dict):
        return None
    row = cast(dict[str, Any], item)
    start_and_end = [row.get(name, row.get(f"{name}_time")) for name in ("start", "end")]
    times: object = row.get("timestamp", start_and_end)
    words = row.get("line", row.get("text"))
    if not isinstance(times, list) or not isinstance(words, str) or not times:
        return None
    start, *rest = (_json_seconds(time) for time in cast(list[object], times)[:2])
    if start is None:
        return None
    # LongVideoBench omits the end of some last lines.
    end = rest[0] if rest and rest[0] is not None else start
    return ShownLines(start_seconds=start, end_seconds=end, lines=tuple(words.splitlines()))


def _json_seconds(value: object) -> float | None:
    if isinstance(value, str):
        match = _ONE_TIME.fullmatch(value)
        return _seconds(match.groups()) if match else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _seconds(groups: Sequence[str | None]) -> float:
    hours, minutes, seconds, fraction = groups
    whole = int(hours or 0) * 3600 + int(minutes or 0) * 60 + int(seconds or 0)
    return float(f"{whole}.{fraction or 0}")


def _last_line(lines: Sequence[str]) -> str:
    return next(_from_the_end(lines), "")


def _from_the_end(lines: Sequence[str]) -> Iterator[str]:
    return (line for line in reversed(lines) if line.strip())


def _is_number(line: str) -> bool:
    return bool(_NUMBER.fullmatch(line))


def _without_number(block: list[str]) -> list[str]:
    """Remove the number of the next cue, which is the last line before its times."""
    last = len(block) - 1
    while last >= 0 and not block[last].strip():
        last -= 1
    return block[:last] if last >= 0 and _is_number(block[last]) else block
