"""Still pictures: probed and read as a video of one frame, so that whoever reads frames needs no second way.

Pixels are RGB and upright, whatever the file says about its orientation; what is transparent becomes white. A file that
moves, or whose pixels are finer than eight bits, is refused rather than cut down. Of a photograph that carries further
pictures (a preview, a second exposure) the first one counts.
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
"""Endings by which pictures are told from videos where nothing else does."""

# Only these are opened: left to itself the library also runs readers of documents and of vector graphics.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
_MOST_PIXELS = 100_000_000
_FINE_MODES = ("I", "F", "I;16", "I;16B", "I;16L")
_ORIENTATION_TAG = 0x0112
_TURNED = range(5, 9)  # values of that tag for pictures that lie on their side


@dataclass(frozen=True, kw_only=True)
class ImageFile:
    """A probed picture. It holds no open file, so it may be kept, shared by threads and sent to other processes.

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
            DataError: When it is no picture of a known format, damaged, too large, moves, or has pixels finer than 8
                bits.
        """
        path = Path(path)
        if not path.is_file():
            raise UsageError(f"{path}: {'a folder' if path.is_dir() else 'no such file'}; expected a picture")
        try:
            with Image.open(path, formats=_FORMATS) as image:
                width, height = image.size
                if width * height > _MOST_PIXELS:
                    raise DataError(f"{path}: {width}×{height} pixels, expected at most {_MOST_PIXELS} in all")
                if image.mode in _FINE_MODES:
                    raise DataError(f"{path}: pixels of the kind {image.mode}, expected 8 bits; convert the picture")
                if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
                    raise DataError(f"{path}: it moves; expected a still picture, turn it into a video")
                image.load()
                if image.getexif().get(_ORIENTATION_TAG) in _TURNED:
                    width, height = height, width
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise DataError(f"{path}: not a picture, or damaged beyond reading ({_reason_of(error)})") from error
        return cls(path=path, width=width, height=height)

    @property
    def content_digest(self) -> str:
        """SHA-256 of the file's bytes; computed once per process as long as size and time of change stay."""
        return digest_file(self.path)

    @property
    def frame_count(self) -> int:
        """One."""
        return 1

    @property
    def duration_seconds(self) -> float:
        """0: a picture doesn't last."""
        return 0.0

    @property
    def decoder(self) -> str:
        """What makes the pixels."""
        return "pillow"

    @property
    def timestamps(self) -> NDArray[np.float64]:
        """The time of its only frame: float64 [1]."""
        return np.zeros(1)

    def read(self, indices: Sequence[int]) -> NDArray[np.uint8]:
        """Decode the picture, once for each index, all of which are 0.

        Returns:
            uint8 [len(indices), height, width, 3], RGB.

        Raises:
            DataError: When an index isn't 0, or the picture can't be decoded.
        """
        if any(index != 0 for index in indices):
            raise DataError(f"{self.path}: frame {max(indices)} of a picture asked for, expected 0")
        return np.repeat(self._decode()[None], len(indices), axis=0)

    def frames(self, indices: Sequence[int]) -> Iterator[tuple[int, Pixels]]:
        """See `longvideo_reason_data.media.video_file.VideoFile.frames`; the only place is 0."""
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
            raise DataError(f"{self.path}: the picture can't be decoded ({_reason_of(error)})") from error
        if pixels.shape != (self.height, self.width, 3):
            raise DataError(f"{self.path}: it has become another picture since it was opened")
        return pixels


def _reason_of(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


FramesFile = VideoFile | ImageFile
"""Whatever has frames."""
