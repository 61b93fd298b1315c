"""Small pictures of the frames a model looked at, as data URIs."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from longvideo_reason_data.media.video_file import VideoFile, sample_frames
from longvideo_reason_data.records.record import QuestionRecord, resolve_video

MOST_FRAMES = 8
SIDE_PIXELS = 112
JPEG_QUALITY = 72


@dataclass(frozen=True, slots=True, kw_only=True)
class Thumbnail:
    """One frame."""

    seconds: float
    source: str
    """`data:image/jpeg;base64,…`"""
    is_evidence: bool
    """Whether it lies in one of the question's evidence intervals."""


def draw_thumbnails(dataset: Path, record: QuestionRecord, num_frames: int) -> list[Thumbnail]:
    """Up to eight of the frames that a model sees at this number of frames, evidence before others."""
    video = VideoFile.open(resolve_video(dataset, record), num_threads=1)
    seen = sample_frames(video, num_frames=num_frames)
    evidence = {index for index in seen if is_evidence(record, float(video.timestamps[index]))}
    chosen = choose_frames(seen, evidence)
    frames = video.read(chosen)
    return [
        Thumbnail(seconds=float(video.timestamps[index]), source=_data_uri(frame), is_evidence=index in evidence)
        for index, frame in zip(chosen, frames, strict=True)
    ]


def choose_frames(seen: Sequence[int], evidence: set[int], most: int = MOST_FRAMES) -> list[int]:
    """At most `most` frames in order: evidence spread evenly, and others spread evenly over what is left."""
    proof = spread([index for index in seen if index in evidence], most)
    others = spread([index for index in seen if index not in evidence], most - len(proof))
    return sorted([*proof, *others])


def spread(items: Sequence[int], count: int) -> list[int]:
    """At most `count` of the items, from the centres of equal intervals."""
    if len(items) <= count:
        return list(items)
    return [items[(2 * place + 1) * len(items) // (2 * count)] for place in range(count)]


def is_evidence(record: QuestionRecord, seconds: float) -> bool:
    """Whether a moment lies in one of the record's evidence intervals."""
    return any(interval.start_seconds <= seconds <= interval.end_seconds for interval in record.evidence)


def _data_uri(frame_HW3: NDArray[np.uint8]) -> str:
    image = Image.fromarray(frame_HW3)
    image.thumbnail((SIDE_PIXELS, SIDE_PIXELS), Image.Resampling.BOX)
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=JPEG_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
