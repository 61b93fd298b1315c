"""Images: probed and read as a video of one frame, so that users of frames need only one interface.

Pixels are RGB and upright, with the file's orientation applied; transparent pixels become white. An animated file, or
one with more than eight bits per channel, is refused rather than reduced. Of a photograph with additional images (a
preview, a second exposure) the first one is used.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from longvideo_reason_data.errors import DataError, UsageError
from longvideo_reason_data.media.decoders.base import Pixels
from longvideo_reason_data.media.video_file import VideoFile, digest_file

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})
"""Extensions that distinguish images from videos where nothing else does."""

# Only these are opened: by default the library also runs readers for documents and vector graphics.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
_MOST_PIXELS = 100_000_000
_FINE_MODES = ("I", "F", "I;16", "I;16B", "I;16L")
_ORIENTATION_TAG = 0x0112
_TURNED = range(5, 9)  # values of that tag for images rotated by 90 degrees


@dataclass(frozen=True, kw_only=True)
class ImageFile:
    """A probed image. It holds no open file, so it may be kept, shared by threads and sent to other processes.

    Attributes:
        path: The file.
        width: Width in pixels as shown.
        height: Height in pixels as shown.
    """

    path: Path
    width: int
    height: int

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """Probe a file by decoding it once.

        Raises:
            UsageError: When there is no such file.
            DataError: When it isn't an image in a known format, or is damaged, too large, animated, or has more than 8
                bits per channel.
        """
        path = Path(path)
        if not path.is_file():
            raise UsageError(f"{path}: {'a folder' if path.is_dir() else 'no such file'}; expected an image")
        try:
            with Image.open(path, formats=_FORMATS) as image:
                width, height = image.size
                if width * height > _MOST_PIXELS:
                    raise DataError(f"{path}: {width}×{height} pixels, expected at most {_MOST_PIXELS} in all")
                if image.mode in _FINE_MODES:
                    raise DataError(f"{path}: pixels of the kind {image.mode}, expected 8 bits; convert the image")
                if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
                    raise DataError(f"{path}: it is animated; expected a still image, convert it into a video")
                image.load()
                if image.getexif().get(_ORIENTATION_TAG) in _TURNED:
                    width, height = height, width
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise DataError(f"{path}: not an image, or too damaged to be read ({_reason_of(error)})") from error
        return cls(path=path, width=width, height=height)

    @property
    def content_digest(self) -> str:
        """SHA-256 of the file's bytes; computed once per process while size and modification time are unchanged."""
        return digest_file(self.path)

    @property
    def frame_count(self) -> int:
        """1."""
        return 1

    @property
    def duration_seconds(self) -> float:
        """0: an image has no duration."""
        return 0.0

    @property
    def decoder(self) -> str:
        """The library that decodes the image."""
        return "pillow"

    @property
    def timestamps(self) -> NDArray[np.float64]:
        """The time of its only frame: float64 [1]."""
        return np.zeros(1)

    def read(self, indices: Sequence[int]) -> NDArray[np.uint8]:
        """Decode the image once for each index, all of which are 0.

        Returns:
            uint8 [len(indices), height, width, 3], RGB.

        Raises:
            DataError: When an index isn't 0, or the image can't be decoded.
        """
        if any(index != 0 for index in indices):
            raise DataError(f"{self.path}: frame {max(indices)} of an image requested, expected 0")
        return np.repeat(self._decode()[None], len(indices), axis=0)

    def frames(self, indices: Sequence[int]) -> Iterator[tuple[int, Pixels]]:
        """See `longvideo_reason_data.media.video_file.VideoFile.frames`; the only index is 0."""
        yield from zip(indices, self.read(indices), strict=True)

    def _decode(self) -> Pixels:
        try:
            with Image.open(self.path, formats=_FORMATS) as image:
                upright = ImageOps.exif_transpose(image)
                if upright.has_transparency_data:
                    white = Image.new("RGBA", upright.size, "white")
                    upright = Image.alpha_composite(white, upright.convert("RGBA"))
                pixels = np.asarray(upright.convert("RGB"))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise DataError(f"{self.path}: the image can't be decoded ({_reason_of(error)})") from error
        if pixels.shape != (self.height, self.width, 3):
            raise DataError(f"{self.path}: it has changed since it was opened")
        return pixels


def _reason_of(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


FramesFile = VideoFile | ImageFile
"""Anything with frames."""
