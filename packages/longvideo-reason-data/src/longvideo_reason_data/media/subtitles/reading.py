"""Reads the subtitles of a video, from a file next to it or from a text track inside it.

Files take precedence over tracks (`longvideo_reason_data.media.subtitles.files` says which). FFmpeg reads tracks and
SubStation files, `longvideo_reason_data.media.subtitles.timed_text` all others. Times are seconds from the first frame,
as everywhere; those of a file are assumed to start there. Subtitles in the form of images are ignored. Unreadable
subtitles are reported and never cause a video to be dropped.
"""

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
from av.container import InputContainer
from av.stream import Discard
from av.subtitles.subtitle import AssSubtitle

from longrl_files.folders import ForeignFolder
from longvideo_reason_data.media.subtitles.cues import Cue, ShownLines, make_cues
from longvideo_reason_data.media.subtitles.files import find_subtitle_files
from longvideo_reason_data.media.subtitles.timed_text import (
    NotTimedTextError,
    TimedText,
    read_timed_json,
    read_timed_text,
    read_timed_words,
)
from longvideo_reason_data.media.video_file import VideoFile
from longvideo_reason_data.text_encodings import decode_text

MAX_SUBTITLE_BYTES = 64 * 2**20
"""Most bytes that are read of a subtitle file; those of the longest films have a hundredth."""

_TEXT_CODECS = frozenset({"subrip", "srt", "webvtt", "mov_text", "ass", "ssa", "text"})
_SUBSTATION = re.compile(r"^\s*\[(?:Script Info|Events)\]", re.IGNORECASE | re.MULTILINE)
_NOTE = re.compile(r"\{[^\\}]*\}")  # the author's comments; formatting begins with a backslash


@dataclass(frozen=True, slots=True, kw_only=True)
class Subtitles:
    """The subtitles of a video.

    Attributes:
        cues: In order of time; empty if there are no subtitles or nobody speaks.
        origin: Description of their source, with other files that were ignored; empty if there are none.
        problem: What can't be read, in one line; empty if everything can.
    """

    cues: tuple[Cue, ...] = ()
    origin: str = ""
    problem: str = ""


def read_subtitles(video: VideoFile, folder: Path | None = None) -> Subtitles:
    """Read the subtitles of a video.

    Args:
        video: The video.
        folder: Another folder where its subtitle files may be.
    """
    found = find_subtitle_files(video.path, folder)
    if not found:
        return _read_track(video)
    chosen, *others = found
    passed_over = f"; ignored: {', '.join(path.name for path in others)}" if others else ""
    return read_subtitle_file(chosen, passed_over=passed_over)


def read_subtitle_file(chosen: Path, *, passed_over: str = "") -> Subtitles:
    """Read one subtitle file.

    Args:
        chosen: The file.
        passed_over: Added to the description of the source.
    """
    try:
        place = ForeignFolder(chosen.parent, error=NotTimedTextError)
        text, guessed = decode_text(place.read_bytes(chosen.name, max_bytes=MAX_SUBTITLE_BYTES))
        timed = _read_text(text, chosen.suffix.lower())
    except (OSError, UnicodeError, NotTimedTextError, av.FFmpegError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        problem = f"{chosen}: its subtitles can't be read ({reason}); save them as UTF-8 .srt or .vtt, or remove them"
        return Subtitles(origin=chosen.name + passed_over, problem=problem)
    problem = ""
    if timed.unreadable:
        problem = f"{chosen}: {len(timed.unreadable)} subtitles have no readable times, first in {timed.unreadable[0]}"
    encoding = f" in {guessed}, guessed from its content" if guessed else ""
    return Subtitles(cues=make_cues(timed.shown), origin=chosen.name + encoding + passed_over, problem=problem)


def _read_text(text: str, suffix: str) -> TimedText:
    if suffix == ".json":
        return read_timed_json(text)
    if suffix == ".jsonl":
        return read_timed_words(text)
    if _SUBSTATION.search(text):  # whatever the file's name
        with av.open(io.BytesIO(text.encode()), mode="r", format="ass", metadata_errors="ignore") as container:
            return TimedText(shown=tuple(_shown(container, first_seconds=0.0)))
    return read_timed_text(text)


def _read_track(video: VideoFile) -> Subtitles:
    first_seconds = float(int(video.index.times[0]) * video.index.time_base)
    try:
        with av.open(str(video.path.absolute()), mode="r", metadata_errors="ignore") as container:
            stream = next((s for s in container.streams.subtitles if s.codec_context.name in _TEXT_CODECS), None)
            if stream is None:
                return Subtitles()
            origin = f"track {stream.index}"
            return Subtitles(cues=make_cues(_shown(container, first_seconds)), origin=origin)
    except (av.FFmpegError, OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        return Subtitles(origin="a track", problem=f"{video.path}: the subtitles inside it can't be read ({reason})")


def _shown(container: InputContainer, first_seconds: float) -> Iterator[ShownLines]:
    """Decode the first text track."""
    stream = next((s for s in container.streams.subtitles if s.codec_context.name in _TEXT_CODECS), None)
    if stream is None:
        return
    for other in container.streams:
        if other.index != stream.index:
            other.discard = Discard.all  # so that an hour of video and audio needn't be read
    for packet in container.demux(stream):
        if packet.size == 0 or packet.pts is None:
            continue
        texts = [
            part.dialogue.decode("utf-8", errors="replace")
            for part in stream.decode2(packet) or ()
            if isinstance(part, AssSubtitle)
        ]
        start = float(packet.pts * packet.time_base) - first_seconds
        end = start + float((packet.duration or 0) * packet.time_base)
        lines = _NOTE.sub("", "\n".join(texts)).replace("\\n", "\\N").split("\\N")
        yield ShownLines(start_seconds=start, end_seconds=end, lines=tuple(lines))
