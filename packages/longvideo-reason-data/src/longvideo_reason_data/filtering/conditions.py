"""What a model gets in addition to the question, under each condition.

A frame is preceded by its time, because reasoning and evidence mention times; under SCRAMBLED the order is random, so
times are omitted. Captions are those of the build, if there are any. Several media are all shown, in their order, each
after its name.
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
    """What comes before the question.

    Attributes:
        parts: Images with their times, in the order in which they are sent.
        text: Text about them.
    """

    parts: tuple[str | Picture, ...]
    text: str


def material_for(
    condition: Condition,
    record: QuestionRecord,
    shown: Sequence[VideoPictures],
    captions: Sequence[Sequence[str]],
    settings: FilterSettings,
) -> Material | None:
    """Choose what a model gets.

    Args:
        condition: Any except REASONING, which doesn't show media.
        record: The question.
        shown: The frames of its media, in their order.
        captions: Description and subtitles of each of them, one line per segment; empty if there are none.
        settings: Number of frames, for all videos together.

    Returns:
        The material, or None if the condition doesn't apply: no captions, no evidence, or no video to show less of.
    """
    names = describe_media(shown)
    match condition:
        case Condition.BLIND:
            return Material(parts=(), text=f"This question is about {names} that you can't see.")
        case Condition.CAPTIONS:
            if not all(captions):
                return None
            verb = "shows" if len(shown) == 1 else "show"
            heads = [()] if len(shown) == 1 else [(f"Video {number}:",) for number, _ in enumerate(shown, start=1)]
            lines = [line for head, own in zip(heads, captions, strict=True) for line in (*head, *own)]
            return Material(parts=(), text="\n".join((f"This is what {names} {verb}, part by part.", *lines)))
        case Condition.EVIDENCE | Condition.SCRAMBLED:
            if not record.evidence:
                return None
            plan = _plan_evidence(record, shown, settings.num_evidence_frames)
            if condition is Condition.SCRAMBLED:
                pictures = _scrambled(_pictures_of(shown, plan), record.question_id)
                text = f"These pictures are from parts of {names}, in no particular order."
                return Material(parts=tuple(pictures), text=text)
            alone = "These pictures are from parts of a video, each at its time."
            return _in_order(shown, plan, alone, "frames of parts of it, each at its time")
        case Condition.SINGLE_FRAME:
            alone = "This picture is from the middle of a video of {:.1f} s."
            return _at_most(1, shown, alone, "the frame in its middle")
        case Condition.FEW_FRAMES:
            return _at_most(settings.num_few_frames, shown, _WHOLE, _FRAMES)
        case Condition.FULL | Condition.ROLLOUTS:
            return _in_order(shown, _plan(shown, settings.num_full_frames), _WHOLE, _FRAMES)
        case Condition.REASONING:
            raise ValueError("the reasoning is given to a judge, not shown as material")


_WHOLE = "These pictures are from a video of {:.1f} s, each at its time."
_FRAMES = "frames of it, each at its time"


def describe_media(shown: Sequence[VideoPictures]) -> str:
    """Describe the number of videos and images: "a video", "2 videos and a picture"."""
    num_images = sum(pictures.is_image for pictures in shown)
    counts = ((len(shown) - num_images, "video"), (num_images, "picture"))
    return " and ".join(f"a {name}" if count == 1 else f"{count} {name}s" for count, name in counts if count)


def evidence_frames(video: FrameTimes, evidence: Sequence[Interval], *, num_frames: int) -> tuple[int, ...]:
    """Plan frames of the evidence, distributed by the length of its intervals.

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


def _plan(shown: Sequence[VideoPictures], num_frames: int) -> list[tuple[int, ...]]:
    """Spread frames evenly over each video, with the same share for all videos; an image is shown as it is."""
    num_videos = sum(not pictures.is_image for pictures in shown)
    share = max(1, num_frames // max(1, num_videos))
    return [sample_frames(pictures.video, num_frames=share) for pictures in shown]


def _plan_evidence(record: QuestionRecord, shown: Sequence[VideoPictures], num_frames: int) -> list[tuple[int, ...]]:
    """Spread frames over the evidence in each video, by its length; an image is shown as it is."""
    seconds = [span.end_seconds - span.start_seconds for span in record.evidence]
    plan: list[tuple[int, ...]] = []
    for place, pictures in enumerate(shown):
        own = [span for span in record.evidence if span.medium == place]
        share = sum(span.end_seconds - span.start_seconds for span in own) / sum(seconds)
        wanted = max(1, round(num_frames * share))
        plan.append((0,) if pictures.is_image else evidence_frames(pictures.video, own, num_frames=wanted))
    return plan


def _at_most(num_frames: int, shown: Sequence[VideoPictures], alone: str, frames: str) -> Material | None:
    """Show only a part of each video; None if there is no video."""
    if all(pictures.is_image for pictures in shown):
        return None
    return _in_order(shown, _plan(shown, num_frames), alone, frames)


def _in_order(shown: Sequence[VideoPictures], plan: Sequence[Sequence[int]], alone: str, frames: str) -> Material:
    """Show frames of all media in their order, and name each if there are several.

    Args:
        shown: The frames of the media.
        plan: The frames of each to show.
        alone: Text about a single video; gets its length.
        frames: Text about the frames that follow the name of a video.
    """
    if len(shown) == 1 and not shown[0].is_image:
        text = alone.format(shown[0].video.duration_seconds)
        return Material(parts=tuple(_with_times(shown[0], plan[0])), text=text)
    titles = [f"{_kind(pictures)} {number}" for number, pictures in enumerate(shown, start=1)]
    parts: list[str | Picture] = []
    for title, pictures, indices in zip(titles, shown, plan, strict=True):
        of_medium = pictures.pictures(indices) if pictures.is_image else _with_times(pictures, indices)
        parts += [f"[{title}]", *of_medium]
    listed = ", ".join(
        title if pictures.is_image else f"{title} of {pictures.video.duration_seconds:.1f} s"
        for title, pictures in zip(titles, shown, strict=True)
    )
    after = "" if all(pictures.is_image for pictures in shown) else f" What follows the name of a video is {frames}."
    return Material(parts=tuple(parts), text=f"Shown are, in this order: {listed}.{after}")


def _kind(pictures: VideoPictures) -> str:
    return "picture" if pictures.is_image else "video"


def _pictures_of(shown: Sequence[VideoPictures], plan: Sequence[Sequence[int]]) -> list[Picture]:
    return [picture for pictures, indices in zip(shown, plan, strict=True) for picture in pictures.pictures(indices)]


def _with_times(pictures: VideoPictures, indices: Sequence[int]) -> list[str | Picture]:
    """Put each frame after its time."""
    times = pictures.video.timestamps
    parts: list[str | Picture] = []
    for index, picture in zip(indices, pictures.pictures(indices), strict=True):
        parts += [f"[{times[index]:.1f} s]", picture]
    return parts


def _scrambled(pictures: Sequence[Picture], name: str) -> list[Picture]:
    """Shuffle frames, in the same way in every run."""
    shuffled = list(pictures)
    random.Random(f"scrambled {name}").shuffle(shuffled)
    is_same = [picture.identity for picture in shuffled] == [picture.identity for picture in pictures]
    return shuffled[::-1] if is_same else shuffled
