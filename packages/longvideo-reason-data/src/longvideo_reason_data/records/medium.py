"""The media of a question in its record: videos and images, in the order in which they are shown.

A medium is a path inside the dataset folder and the digest of the file's bytes, so a dataset can be moved but not
confused with another.
"""

import os
from enum import StrEnum
from pathlib import Path, PurePath, PurePosixPath
from typing import Annotated, Self

from pydantic import BaseModel, Field, StringConstraints, field_validator, model_validator

from longrl_files.folders import ForeignFolder
from longrl_files.messages import visible
from longvideo_reason_data.errors import DataError
from longvideo_reason_data.media.decoders.base import DecoderName
from longvideo_reason_data.media.image_file import IMAGE_SUFFIXES, FramesFile, ImageFile
from longvideo_reason_data.media.video_file import VideoFile

MAX_TEXT_CHARACTERS = 2**18
NonEmpty = Annotated[str, StringConstraints(min_length=1, max_length=MAX_TEXT_CHARACTERS, pattern=r"\S")]

_MAX_NAME_BYTES = 255
_MAX_PATH_BYTES = 4095


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
        if max(len(os.fsencode(part)) for part in parts) > _MAX_NAME_BYTES or len(os.fsencode(value)) > _MAX_PATH_BYTES:
            raise ValueError(f"path {value!r} is longer than file systems take")
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
        DataError: When the file is missing, or the path leads through a link (`longrl_files.folders`).
    """
    folder = ForeignFolder(dataset_folder.resolve(), error=DataError)
    if not folder.has(medium.path):
        raise DataError(f"{medium.kind} {visible(medium.path)!r} is missing from {folder.root}")
    return folder.path(medium.path)


def open_medium(dataset_folder: Path, medium: RecordMedium, *, decoder: DecoderName = DecoderName.PYAV) -> FramesFile:
    """Open the file of a medium.

    Args:
        dataset_folder: The folder that holds the records file.
        medium: A medium of a record read from it.
        decoder: Which library makes the pixels of videos.

    Raises:
        UsageError: When the decoder isn't installed.
        DataError: When the file is missing, outside the folder, damaged, or of another kind.
    """
    return open_file(resolve_medium(dataset_folder, medium), medium.kind, decoder=decoder)


def open_file(path: Path, kind: MediumKind, *, decoder: DecoderName = DecoderName.PYAV) -> FramesFile:
    """Open a file of a known kind; see `open_medium`."""
    return ImageFile.open(path) if kind is MediumKind.IMAGE else VideoFile.open(path, decoder=decoder)


def kind_of(path: PurePath) -> MediumKind:
    """Tell what a file is by its name, where nothing else says it."""
    return MediumKind.IMAGE if path.suffix.lower() in IMAGE_SUFFIXES else MediumKind.VIDEO
