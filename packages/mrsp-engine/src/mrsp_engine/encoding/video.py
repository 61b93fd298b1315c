"""What the engine needs from a video.

Any reader with these members can be passed to `Policy.encode_video`; the engine does not depend on containers, codecs
or file paths. Sizes are those of the frames that `read` returns, after any rotation.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from mrsp_engine.embeddings.digests import FileDigests


class Video(Protocol):
    """A source of exact frames."""

    @property
    def content_digest(self) -> str:
        """SHA-256 (hex) of the source of the frames; equal digests mean equal frames."""
        ...

    @property
    def frame_count(self) -> int:
        """Number of frames that can be read."""
        ...

    @property
    def timestamps(self) -> npt.NDArray[np.float64]:
        """Presentation time of every frame in seconds, strictly increasing, shape [frame_count]."""
        ...

    @property
    def height(self) -> int:
        """Rows of every frame that `read` returns."""
        ...

    @property
    def width(self) -> int:
        """Columns of every frame that `read` returns."""
        ...

    def read(self, indices: Sequence[int]) -> npt.NDArray[np.uint8]:
        """Return the frames at `indices` as RGB, shape [F, H, W, 3].

        Raises:
            UnreadableMediumError: The file doesn't contain them. Any other exception counts as a fault of the reader.
        """
        ...


class FileVideo:
    """A video whose content digest is cached between runs; everything else comes from the wrapped reader.

    Args:
        video: Reads the frames of the file.
        path: The file.
        digests: Cache of file digests.
    """

    def __init__(self, video: Video, path: Path, digests: FileDigests) -> None:
        self._video = video
        self.content_digest = digests.digest(path)

    @property
    def frame_count(self) -> int:
        """See `Video.frame_count`."""
        return self._video.frame_count

    @property
    def timestamps(self) -> npt.NDArray[np.float64]:
        """See `Video.timestamps`."""
        return self._video.timestamps

    @property
    def height(self) -> int:
        """See `Video.height`."""
        return self._video.height

    @property
    def width(self) -> int:
        """See `Video.width`."""
        return self._video.width

    def read(self, indices: Sequence[int]) -> npt.NDArray[np.uint8]:
        """See `Video.read`."""
        return self._video.read(indices)
