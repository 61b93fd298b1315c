"""The medium of text models: the file that the questions come from, which the model is never shown."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from longrl_trainer.config.sections import DataSection
from longvideo_reason_data.media.video_file import digest_file
from mrsp_engine.embeddings.reference import MediaReference
from mrsp_engine.families.base import Policy


@dataclass(frozen=True, kw_only=True)
class SourceText:
    """The file that text questions come from: named and checked like any medium, and never shown to the model."""

    path: Path

    @classmethod
    def open(cls, path: Path, policy: Policy) -> Self:
        """Take note of the file."""
        return cls(path=path)

    @property
    def content_digest(self) -> str:
        """SHA-256 of the file's bytes."""
        return digest_file(self.path)

    def encode(self, data: DataSection) -> tuple[MediaReference, ...]:
        """Refer to nothing: everything there is to know stands in the question."""
        return ()
