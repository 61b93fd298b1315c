"""What is said in a video, where somebody wrote it down: subtitle files beside it and text tracks inside it.

A file of the same name ending in `.srt` or `.vtt`, also with a language between (`talk.en.srt`), goes before a track.
FFmpeg reads them all. Times are seconds from the first frame, as everywhere; those of a file beside the video are taken
to count from there. Subtitles that are pictures are left alone.
"""

import hashlib
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import av
from av.container import InputContainer
from av.stream import Discard
from av.subtitles.subtitle import AssSubtitle

from longvideo_reason_data.errors import DataError
from longvideo_reason_data.media.video_file import VideoFile

_SUFFIXES = (".srt", ".vtt")
_LANGUAGE = re.compile(r"\.[A-Za-z]{2,3}(?:[-_]\w{2,8})?")
_TEXT_CODECS = frozenset({"subrip", "srt", "webvtt", "mov_text", "ass", "ssa", "text"})
_MARKUP = re.compile(r"\{\\[^}]*\}|</?[A-Za-z][^>]*>")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cue:
    """Words, and when they are shown.

    Attributes:
        start_seconds: Since the first frame of the video; below 0 when before it.
        end_seconds: When they vanish.
        text: One line without markup.
    """

    start_seconds: float
    end_seconds: float
    text: str


def read_subtitles(video: VideoFile) -> tuple[Cue, ...]:
    """Read the subtitles of a video.

    Returns:
        In order of time; none when there are no subtitles.

    Raises:
        DataError: When there are some and they can't be read.
    """
    beside = _file_beside(video.path)
    if beside is not None:
        return _read(beside, first_seconds=0.0)
    return _read(video.path, first_seconds=float(int(video.index.times[0]) * video.index.time_base))


def speech_between(cues: Sequence[Cue], start_seconds: float, end_seconds: float) -> str:
    """Join what is said in a time range; every cue belongs to the one range that holds its middle.

    Lines that a cue repeats from the one before, as live captions do, are said once.
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


def _file_beside(path: Path) -> Path | None:
    """Choose the subtitle file of a video: of its very name first, then the first language."""
    for suffix in _SUFFIXES:
        if (exact := path.with_name(path.stem + suffix)).is_file():
            return exact
    candidates = (
        other
        for other in path.parent.iterdir()
        if other.suffix.lower() in _SUFFIXES
        and other.stem.startswith(path.stem)
        and _LANGUAGE.fullmatch(other.stem[len(path.stem) :])
    )
    return min(candidates, default=None)


def _read(path: Path, *, first_seconds: float) -> tuple[Cue, ...]:
    try:
        with av.open(str(path.absolute()), mode="r", metadata_errors="ignore") as container:
            return tuple(sorted(_cues(container, first_seconds), key=lambda cue: (cue.start_seconds, cue.end_seconds)))
    except (av.FFmpegError, OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise DataError(
            f"{path}: its subtitles can't be read ({reason}); save them as UTF-8 .srt or .vtt, or remove them"
        ) from error


def _cues(container: InputContainer, first_seconds: float) -> list[Cue]:
    """Decode the first text track."""
    stream = next((s for s in container.streams.subtitles if s.codec_context.name in _TEXT_CODECS), None)
    if stream is None:
        return []
    for other in container.streams:
        if other.index != stream.index:
            other.discard = Discard.all  # so that pictures and sound of an hour needn't be read
    cues: list[Cue] = []
    for packet in container.demux(stream):
        if packet.size == 0 or packet.pts is None or not packet.duration:
            continue
        texts = [
            part.dialogue.decode("utf-8", errors="replace")
            for part in stream.decode2(packet) or ()
            if isinstance(part, AssSubtitle)
        ]
        text = " ".join(html.unescape(_MARKUP.sub("", " ".join(texts)).replace("\\N", " ")).split())
        if text:
            start = float(packet.pts * packet.time_base) - first_seconds
            end = start + float(packet.duration * packet.time_base)
            cues.append(Cue(start_seconds=start, end_seconds=end, text=text))
    return cues
