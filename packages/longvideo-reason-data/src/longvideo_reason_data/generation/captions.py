"""Describes a video segment by segment, from frames, subtitles and the previous description.

A video's segments are described one after the other, because each needs the previous description; several videos are
processed in parallel. A segment that can't be described is dropped with its reason, and the chain continues from the
last description.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from longvideo_reason_data.generation.settings import CaptionSettings
from longvideo_reason_data.language_model.requests import Asks, Outcome, Request, without_reasoning
from longvideo_reason_data.media.segments import Segment, frames_in_segment
from longvideo_reason_data.media.subtitles.cues import Cue, speech_between
from longvideo_reason_data.media.video_file import VideoFile
from longvideo_reason_data.prompts.pictures import VideoPictures
from longvideo_reason_data.prompts.templates import Prompts
from longvideo_reason_data.records.folder import SEGMENTS_NAME
from longvideo_reason_data.records.notes import SegmentNote, read_notes

_NOTHING_BEFORE = "(nothing: this is the beginning)"
_NOTHING_SAID = "(nothing)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Caption:
    """The description of a segment, and what is said in it."""

    segment: Segment
    text: str
    speech: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LostSegment:
    """A segment without a description, and the reason."""

    segment: Segment
    outcome: Outcome
    detail: str


async def caption_segments(
    language_model: Asks,
    video: VideoFile,
    segments: Sequence[Segment],
    *,
    cues: Sequence[Cue],
    model: str,
    prompts: Prompts,
    settings: CaptionSettings,
    on_segment: Callable[[], None] = lambda: None,
) -> tuple[list[Caption], list[LostSegment]]:
    """Describe the segments of a video in order.

    Args:
        language_model: The client of the server.
        video: The video.
        segments: Its segments in order.
        cues: The video's subtitles.
        model: Name of the captioner.
        prompts: The prompts, of which `caption` is used.
        settings: How segments are shown to the model.
        on_segment: Called after each segment, for a progress bar.

    Returns:
        The descriptions, and the segments without one.

    Raises:
        DataError: When the server can't be used at all, or a frame can't be decoded.
    """
    captions: list[Caption] = []
    lost: list[LostSegment] = []
    digest = await asyncio.to_thread(lambda: video.content_digest)
    for segment in segments:
        # One per segment, so that the images of an hour aren't kept.
        shown = VideoPictures(video, digest, max_side=settings.max_side, jpeg_quality=settings.jpeg_quality)
        pictures = shown.pictures(frames_in_segment(video, segment, num_frames=settings.num_frames))
        speech = speech_between(cues, segment.start_seconds, segment.end_seconds)
        text = prompts.fill(
            "caption",
            num_frames=len(pictures),
            start_seconds=f"{segment.start_seconds:.1f}",
            end_seconds=f"{segment.end_seconds:.1f}",
            previous=captions[-1].text if captions else _NOTHING_BEFORE,
            speech=speech or _NOTHING_SAID,
        )
        request = Request(
            model=model,
            parts=(*pictures, text),
            max_tokens=settings.max_tokens,
            temperature=settings.temperature,
            prompt_digest=prompts.digest_of("caption"),
        )
        reply = await language_model.ask(request)
        # A truncated description is still usable; only its last sentence may be incomplete.
        words = " ".join(without_reasoning(reply.text).split())
        if reply.outcome not in (Outcome.ANSWERED, Outcome.TRUNCATED):
            lost.append(LostSegment(segment=segment, outcome=reply.outcome, detail=reply.text))
        elif words:
            captions.append(Caption(segment=segment, text=words, speech=speech))
        else:
            detail = "the answer holds nothing but reasoning"
            lost.append(LostSegment(segment=segment, outcome=Outcome.INVALID, detail=detail))
        on_segment()
    return captions, lost


def read_captions(dataset: Path) -> dict[str, list[str]]:
    """Read a build's descriptions of segments, one line each, by the digest of the video.

    Raises:
        DataError: When the file is damaged.
    """
    lines: dict[str, list[tuple[float, str]]] = {}
    for _, segment in read_notes(dataset, SEGMENTS_NAME, SegmentNote):
        said = f' Said: "{segment.speech}"' if segment.speech else ""
        text = f"[{segment.start_seconds:.1f} s to {segment.end_seconds:.1f} s] {segment.caption}{said}"
        lines.setdefault(segment.video_digest, []).append((segment.start_seconds, text))
    return {digest: [text for _, text in sorted(found)] for digest, found in lines.items()}
