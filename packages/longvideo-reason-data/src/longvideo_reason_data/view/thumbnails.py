"""Small pictures for the timelines of the browser, as data URIs, so many and no more.

A page has one budget of pictures for all videos, because each one costs a seek, and the page is opened as a whole.
Videos beyond the budget, and those whose file is missing or damaged, have a timeline without pictures.
"""

import base64
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from io import BytesIO
from pathlib import Path

from PIL import Image

from longvideo_reason_data.errors import DataError
from longvideo_reason_data.media.video_file import sample_frames
from longvideo_reason_data.records.medium import RecordMedium, open_medium

SIDE_PIXELS = 160
JPEG_QUALITY = 62
MOST_PER_VIDEO = 12
_NUM_READERS = 4

Thumbnail = tuple[float, str]
"""Its time in seconds from the first frame, and a data URI."""


def make_thumbnails(dataset: Path, media: Sequence[RecordMedium], *, most: int) -> list[list[Thumbnail]]:
    """Make pictures of media, spread evenly over each; of a still picture there is one.

    Args:
        dataset: The dataset's folder.
        media: The videos and still pictures.
        most: Pictures for all of them together; when that is less than one each, the first ones have them.

    Returns:
        The pictures of each in order of time; none for one that can't be read.
    """
    if not media or most < 1:
        return [[] for _ in media]
    per_video = max(1, min(MOST_PER_VIDEO, most // len(media)))
    pictured = media[: most // per_video]
    with ThreadPoolExecutor(_NUM_READERS) as threads:
        made = list(threads.map(partial(_picture, dataset, per_video), pictured))
    return [*made, *([] for _ in media[len(pictured) :])]


def _picture(dataset: Path, count: int, medium: RecordMedium) -> list[Thumbnail]:
    try:
        video = open_medium(dataset, medium)
        indices = sample_frames(video, num_frames=count)
        frames = video.read(indices)
    except DataError:
        return []
    pictures: list[Thumbnail] = []
    for index, frame_HW3 in zip(indices, frames, strict=True):
        image = Image.fromarray(frame_HW3)
        image.thumbnail((SIDE_PIXELS, SIDE_PIXELS))
        buffer = BytesIO()
        image.save(buffer, format="JPEG", quality=JPEG_QUALITY)
        uri = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
        pictures.append((round(float(video.timestamps[index]), 3), uri))
    return pictures
