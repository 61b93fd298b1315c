"""The media of a question in its record: videos and images, in the order in which they are shown.

A medium is a path inside the dataset folder and the digest of the file's bytes, so a dataset can be moved but not
confused with another. Nothing here opens a file.
"""

from enum import StrEnum
from pathlib import Path, PurePosixPath
from typing import Annotated, Self

from pydantic import BaseModel, Field, StringConstraints, field_validator, model_validator

from longvideo_reason_data.errors import DataError

NonEmpty = Annotated[str, StringConstraints(min_length=1, pattern=r"\S")]


class MediumKind(StrEnum):
    """The kind of a medium."""

    VIDEO = "video"
    """A video or audio file; an audio model family uses its audio."""
    IMAGE = "image"
    """A still image."""


class RecordMedium(BaseModel, extra="forbid", frozen=True):
    """One file that a question is about.

    Attributes:
        kind: Kind of medium.
        path: Where it is inside the dataset folder, with `/`.
        digest: SHA-256 of its bytes.
        duration_seconds: Its duration; None for an image.
    """

    kind: MediumKind = MediumKind.VIDEO
    path: NonEmpty
    digest: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    duration_seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None

    @field_validator("path")
    @classmethod
    def _inside_the_dataset(cls, value: str) -> str:
        parts = PurePosixPath(value).parts
        if value.startswith("/") or "\\" in value or "\0" in value or ".." in parts or not parts:
            raise ValueError(f"path {value!r} must be relative, with '/', and stay inside the dataset folder")
        return value

    @model_validator(mode="after")
    def _lasts_if_a_video(self) -> Self:
        if self.kind is MediumKind.VIDEO and self.duration_seconds is None:
            raise ValueError(f"video {self.path!r} has no duration_seconds, expected its length")
        if self.kind is MediumKind.IMAGE and self.duration_seconds is not None:
            raise ValueError(f"image {self.path!r} has duration_seconds {self.duration_seconds}, expected none")
        return self


def resolve_medium(dataset_folder: Path, medium: RecordMedium) -> Path:
    """Find the file of a medium.

    Args:
        dataset_folder: The folder with the records file.
        medium: A medium of a record read from it.

    Returns:
        The absolute path of an existing file inside the folder.

    Raises:
        DataError: When the path leads outside the folder, also through a symbolic link, or the file is missing.
    """
    folder = dataset_folder.resolve()
    path = (folder / medium.path).resolve()
    if not path.is_relative_to(folder):
        raise DataError(f"{medium.kind} {medium.path!r} leads outside the dataset folder {folder}")
    if not path.is_file():
        raise DataError(f"{medium.kind} {medium.path!r} is missing from {folder}")
    return path
