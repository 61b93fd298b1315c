"""The medium of text models: the file that the questions come from, which the model never sees.

Such a model can't be asked about a video, a recording or an image: the medium would be silently omitted, so the file
has to be text.
"""

import codecs
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from longrl_trainer.config.sections import FrameSettings
from longvideo_reason_data.media.video_file import digest_file
from mrsp_engine.embeddings.reference import MediaReference
from mrsp_engine.errors import EngineUsageError
from mrsp_engine.families.base import Policy

# Any other kind of file is recognised by then.
BYTES_LOOKED_AT = 2**16


@dataclass(frozen=True, kw_only=True)
class SourceText:
    """The file that text questions come from: named and checked like any medium, but never shown to the model."""

    path: Path

    @classmethod
    def open(cls, path: Path, policy: Policy) -> Self:
        """Check the file.

        Raises:
            EngineUsageError: It is a video or another file that the model can't see.
        """
        if path.is_file() and not is_text(path):
            raise EngineUsageError(
                f"{path} is not UTF-8 text, and a model of type {policy.name} accepts nothing else; set another "
                "`model.folder`, or `blind = true` to ask about it without showing it"
            )
        return cls(path=path)

    @property
    def content_digest(self) -> str:
        """SHA-256 of the file's bytes."""
        return digest_file(self.path)

    def encode(self, frames: FrameSettings) -> tuple[MediaReference, ...]:
        """Return no references: the question contains everything."""
        return ()


def is_text(path: Path) -> bool:
    """Whether a file begins with UTF-8 text."""
    with path.open("rb") as file:
        beginning = file.read(BYTES_LOOKED_AT)
    try:
        codecs.getincrementaldecoder("utf-8")().decode(beginning)
    except UnicodeDecodeError:
        return False
    return b"\0" not in beginning
