"""The media that lmms-eval's tasks give, as the engine reads them: a video file by its path, a picture as it is.

Videos are read with the PyAV that lmms-eval requires. Frames are numbered by presentation time, and one is the picture
that a decoder gives from the first frame on, whatever was read before.

Shape legend: F frames, H rows, W columns.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
from av.error import FFmpegError
from numpy.typing import NDArray
from PIL import Image

from mrsp_engine.errors import UnreadableMediumError

__all__ = ["PictureFrames", "TaskVideo"]


class TaskVideo:
    """A video file; see `mrsp_engine.encoding.video.Video`.

    Args:
        path: The file.

    Raises:
        UnreadableMediumError: It isn't a video that can be decoded.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            with path.open("rb") as file:
                self.content_digest = hashlib.file_digest(file, "sha256").hexdigest()
            with av.open(str(path)) as container:
                stream = container.streams.video[0]
                stream.thread_type = "AUTO"
                times = [
                    float(frame.pts * stream.time_base) for frame in container.decode(stream) if frame.pts is not None
                ]
                self.height, self.width = stream.height, stream.width
        except (FFmpegError, OSError, IndexError) as error:
            raise UnreadableMediumError(f"{path}: not a video that can be decoded ({error})") from error
        self.timestamps: NDArray[np.float64] = np.unique(np.array(times, dtype=np.float64))
        self.frame_count = len(self.timestamps)
        if not self.frame_count:
            raise UnreadableMediumError(f"{path}: has no frame with a time")

    def read(self, indices: Sequence[int]) -> NDArray[np.uint8]:
        """Frames as RGB, uint8 [F, H, W, 3]."""
        wanted = {float(self.timestamps[index]): index for index in indices}
        found: dict[int, NDArray[np.uint8]] = {}
        try:
            with av.open(str(self._path)) as container:
                stream = container.streams.video[0]
                stream.thread_type = "AUTO"
                for frame in container.decode(stream):
                    index = None if frame.pts is None else wanted.get(float(frame.pts * stream.time_base))
                    if index is not None and index not in found:
                        found[index] = frame.to_ndarray(format="rgb24", width=self.width, height=self.height)
                    if len(found) == len(wanted):
                        break
        except FFmpegError as error:
            raise UnreadableMediumError(f"{self._path}: can't be decoded any more ({error})") from error
        if len(found) < len(wanted):
            raise UnreadableMediumError(
                f"{self._path}: {len(wanted) - len(found)} frames are gone; the file was changed"
            )
        return np.stack([found[index] for index in indices])


class PictureFrames:
    """A picture as a video of one frame; see `mrsp_engine.encoding.video.Video`.

    Args:
        picture: As a task gives it.
    """

    def __init__(self, picture: Image.Image) -> None:
        self._frames: NDArray[np.uint8] = np.asarray(picture.convert("RGB"), dtype=np.uint8)[None]
        _, self.height, self.width, _ = self._frames.shape
        self.frame_count, self.timestamps = 1, np.zeros(1)
        shape = f"{self.height} {self.width} ".encode()
        self.content_digest = hashlib.sha256(shape + self._frames.tobytes()).hexdigest()

    def read(self, indices: Sequence[int]) -> NDArray[np.uint8]:
        """The frame, uint8 [F, H, W, 3]."""
        return self._frames[list(indices)]
