"""The frames of one video as images for messages, each decoded once, however many questions need it.

A still image is a video of one frame.
"""

import threading
from collections.abc import Sequence
from functools import partial
from io import BytesIO

from PIL import Image

from longvideo_reason_data.language_model.requests import Picture
from longvideo_reason_data.media.image_file import FramesFile, ImageFile


class VideoPictures:
    """Decodes the frames of a video when they are sent, and keeps them as JPEGs as long as this object exists.

    Args:
        video: The video, or an image, which has one frame.
        digest: SHA-256 of its bytes.
        max_side: Longest side of a frame in pixels; larger ones are shrunk.
        jpeg_quality: JPEG quality of a frame, up to 100.

    Attributes:
        video: The video.
    """

    def __init__(self, video: FramesFile, digest: str, *, max_side: int, jpeg_quality: int) -> None:
        self.video = video
        self._digest, self._max_side, self._jpeg_quality = digest, max_side, jpeg_quality
        self._jpegs: dict[int, bytes] = {}
        self._decoding = threading.Lock()

    def pictures(self, indices: Sequence[int]) -> tuple[Picture, ...]:
        """Return references to frames; nothing is decoded before the first of them is sent.

        Args:
            indices: Indices of the frames in presentation order.
        """
        plan = tuple(indices)
        shown = f"decoder {self.video.decoder}, side {self._max_side}, quality {self._jpeg_quality}"
        source = f"image {self._digest}" if self.is_image else f"video {self._digest}, frame {{}}"
        return tuple(
            Picture(identity=f"{source.format(index)}, {shown}", load=partial(self._load, index, plan))
            for index in plan
        )

    @property
    def is_image(self) -> bool:
        """Whether it is an image, not a video."""
        return isinstance(self.video, ImageFile)

    def _load(self, index: int, plan: Sequence[int]) -> bytes:
        """Return one frame; the whole plan that it belongs to is decoded with it.

        Raises:
            DataError: When a frame can't be decoded.
        """
        with self._decoding:
            missing = sorted({place for place in plan if place not in self._jpegs})
            if missing and index not in self._jpegs:
                for place, frame in self.video.frames(missing):  # one in memory at a time
                    image = Image.fromarray(frame)
                    image.thumbnail((self._max_side, self._max_side))
                    buffer = BytesIO()
                    image.save(buffer, format="JPEG", quality=self._jpeg_quality)
                    self._jpegs[place] = buffer.getvalue()
            return self._jpegs[index]
