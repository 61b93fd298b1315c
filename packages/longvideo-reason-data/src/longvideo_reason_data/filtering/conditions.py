"""What a model is given besides the question, under each condition.

A picture is preceded by its time, because reasoning and evidence speak of times; under SCRAMBLED neither the order nor
the times are true to the video, so they are left out. Captions are those of the build, if there are any.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from longvideo_reason_data.filtering.settings import FilterSettings
from longvideo_reason_data.language_model.requests import Picture
from longvideo_reason_data.media.segments import Segment, frames_in_segment
from longvideo_reason_data.media.video_file import FrameTimes, sample_frames
from longvideo_reason_data.prompts.pictures import VideoPictures
from longvideo_reason_data.records.pass_rates import Condition
from longvideo_reason_data.records.record import Interval, QuestionRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """What stands before the question.

    Attributes:
        parts: Pictures with their times, in the order in which they are sent.
        text: What is said about them.
    """

    parts: tuple[str | Picture, ...]
    text: str


def material_for(
    condition: Condition,
    record: QuestionRecord,
    pictures: VideoPictures,
    captions: Sequence[str],
    settings: FilterSettings,
) -> Material | None:
    """Choose what a model is given.

    Args:
        condition: Any but REASONING, which isn't about the video.
        record: The question.
        pictures: The pictures of its video.
        captions: What is seen and said in the video, one line per segment; empty when there are none.
        settings: How many pictures.

    Returns:
        The material, or None where there is nothing that the condition could show: no captions, or no evidence.
    """
    video = pictures.video
    whole = f"These pictures are from a video of {video.duration_seconds:.1f} s"
    match condition:
        case Condition.BLIND:
            return Material(parts=(), text="This question is about a video that you can't see.")
        case Condition.CAPTIONS:
            text = "\n".join(("This is what a video shows, part by part.", *captions))
            return Material(parts=(), text=text) if captions else None
        case Condition.EVIDENCE | Condition.SCRAMBLED:
            indices = evidence_frames(video, record.evidence, num_frames=settings.num_evidence_frames)
            if not indices:
                return None
            if condition is Condition.SCRAMBLED:
                shuffled = _scrambled(indices, record.question_id)
                text = "These pictures are from parts of a video, in no particular order."
                return Material(parts=pictures.pictures(shuffled), text=text)
            return Material(
                parts=_with_times(pictures, indices), text="These pictures are from parts of a video, each at its time."
            )
        case Condition.SINGLE_FRAME:
            indices = sample_frames(video, num_frames=1)
            text = f"This picture is from the middle of a video of {video.duration_seconds:.1f} s."
            return Material(parts=_with_times(pictures, indices), text=text)
        case Condition.FEW_FRAMES:
            indices = sample_frames(video, num_frames=settings.num_few_frames)
            return Material(parts=_with_times(pictures, indices), text=f"{whole}, each at its time.")
        case Condition.FULL | Condition.ROLLOUTS:
            indices = sample_frames(video, num_frames=settings.num_full_frames)
            return Material(parts=_with_times(pictures, indices), text=f"{whole}, each at its time.")
        case Condition.REASONING:
            raise ValueError("the reasoning is given to a judge, not shown as material")


def evidence_frames(video: FrameTimes, evidence: Sequence[Interval], *, num_frames: int) -> tuple[int, ...]:
    """Plan frames of the evidence, shared out by the length of its intervals.

    Args:
        video: The video.
        evidence: Its intervals in any order.
        num_frames: Frames of all intervals together; each gets at least one.

    Returns:
        Strictly ascending; empty without evidence.
    """
    total_seconds = sum(span.end_seconds - span.start_seconds for span in evidence)
    indices: set[int] = set()
    for span in evidence:
        share = (span.end_seconds - span.start_seconds) / total_seconds
        segment = Segment(number=0, start_seconds=span.start_seconds, end_seconds=span.end_seconds)
        indices.update(frames_in_segment(video, segment, num_frames=max(1, round(num_frames * share))))
    return tuple(sorted(indices))


def _with_times(pictures: VideoPictures, indices: Sequence[int]) -> tuple[str | Picture, ...]:
    """Put each picture behind its time."""
    times = pictures.video.timestamps
    parts: list[str | Picture] = []
    for index, picture in zip(indices, pictures.pictures(indices), strict=True):
        parts += [f"[{times[index]:.1f} s]", picture]
    return tuple(parts)


def _scrambled(indices: Sequence[int], name: str) -> list[int]:
    """Put frames in another order, the same in every run."""
    shuffled = list(indices)
    random.Random(f"scrambled {name}").shuffle(shuffled)
    return shuffled if shuffled != list(indices) else shuffled[::-1]
