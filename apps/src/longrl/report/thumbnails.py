"""Small images of the frames that a model saw, as data URIs."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from longvideo_reason_data.media.image_file import FramesFile
from longvideo_reason_data.media.video_file import VideoFile, sample_frames
from longvideo_reason_data.records.medium import open_medium
from longvideo_reason_data.records.record import QuestionRecord

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
    """Whether it is in one of the question's evidence intervals."""


def draw_thumbnails(dataset: Path, record: QuestionRecord, num_frames: int) -> list[Thumbnail]:
    """Up to eight of the frames that a model sees, as many of each medium, evidence first."""
    most = max(1, MOST_FRAMES // len(record.media))
    return [
        thumbnail for place in range(len(record.media)) for thumbnail in _draw(dataset, record, place, num_frames, most)
    ]


def draw_video(path: Path) -> list[Thumbnail]:
    """Up to eight evenly spread frames of a video that there is no question about.

    Raises:
        DataError: It can't be read.
    """
    video = VideoFile.open(path)
    return _read_thumbnails(video, sample_frames(video, num_frames=MOST_FRAMES), set())


def _draw(dataset: Path, record: QuestionRecord, place: int, num_frames: int, most: int) -> list[Thumbnail]:
    """The frames of one of the record's media."""
    video = open_medium(dataset, record.media[place])
    seen = sample_frames(video, num_frames=num_frames)
    evidence = {index for index in seen if is_evidence(record, float(video.timestamps[index]), place)}
    return _read_thumbnails(video, choose_frames(seen, evidence, most), evidence)


def _read_thumbnails(video: FramesFile, chosen: Sequence[int], evidence: set[int]) -> list[Thumbnail]:
    frames = video.read(chosen)
    return [
        Thumbnail(seconds=float(video.timestamps[index]), source=_data_uri(frame), is_evidence=index in evidence)
        for index, frame in zip(chosen, frames, strict=True)
    ]


def choose_frames(seen: Sequence[int], evidence: set[int], most: int = MOST_FRAMES) -> list[int]:
    """At most `most` frames in order: evenly spread evidence, filled up with evenly spread others."""
    proof = spread([index for index in seen if index in evidence], most)
    others = spread([index for index in seen if index not in evidence], most - len(proof))
    return sorted([*proof, *others])


def spread(items: Sequence[int], count: int) -> list[int]:
    """At most `count` of the items, from the centres of equal intervals."""
    if len(items) <= count:
        return list(items)
    return [items[(2 * place + 1) * len(items) // (2 * count)] for place in range(count)]


def is_evidence(record: QuestionRecord, seconds: float, place: int = 0) -> bool:
    """Whether a time in one of the record's media is in one of its evidence intervals."""
    own = [interval for interval in record.evidence if interval.medium == place]
    return any(interval.start_seconds <= seconds <= interval.end_seconds for interval in own)


def _data_uri(frame_HW3: NDArray[np.uint8]) -> str:
    image = Image.fromarray(frame_HW3)
    image.thumbnail((SIDE_PIXELS, SIDE_PIXELS), Image.Resampling.BOX)
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=JPEG_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
