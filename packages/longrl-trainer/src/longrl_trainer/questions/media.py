"""A question's media file as a stage uses it: opened, identified by its digest, encoded.

The trainer itself handles videos and images: their frames are planned here and encoded later, by all ranks together. A
family for other media provides its medium through an entry point in the group `longrl_trainer.media`, under the
family's name; nothing here names one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Protocol, Self, cast

import numpy as np
import numpy.typing as npt

from longrl_trainer.config.sections import FrameSettings
from longrl_trainer.errors import TrainerUsageError
from longrl_trainer.questions.frames import frame_budget, plan_frames
from longvideo_reason_data.errors import DataError
from longvideo_reason_data.media.image_file import ImageFile
from longvideo_reason_data.media.video_file import VideoFile
from longvideo_reason_data.records.medium import MediumKind
from mrsp_engine.embeddings.reference import MediaReference
from mrsp_engine.encoding.parallel import PlannedMedium
from mrsp_engine.encoding.video import FileVideo
from mrsp_engine.errors import UnreadableMediumError
from mrsp_engine.families.base import Policy

ENTRY_POINT_GROUP = "longrl_trainer.media"


class Medium(Protocol):
    """An opened file."""

    @property
    def content_digest(self) -> str:
        """SHA-256 of the file's bytes."""
        ...

    def encode(self, frames: FrameSettings) -> tuple[MediaReference | PlannedMedium, ...]:
        """Return references to what the model sees of it, encoding what the policy's store lacks; may be empty.

        Frames are only planned here, and encoded later by all ranks together. Only one rank calls this. The settings'
        preset has already been applied.

        Raises:
            DataError: The file can't be used.
            UnfitMediumError: The model can't accept it.
        """
        ...


OpenMedium = Callable[[Path, Policy], Medium]
"""Opens a file for a policy; raises `DataError` when the file can't be used."""


class DatasetVideo(FileVideo):
    """A dataset's video, whose errors are converted to the engine's own error type."""

    def read(self, indices: Sequence[int]) -> npt.NDArray[np.uint8]:
        """See `Video.read`."""
        try:
            return super().read(indices)
        except DataError as error:
            raise UnreadableMediumError(str(error)) from error


@dataclass(frozen=True, kw_only=True)
class VideoMedium:
    """A video, shown as evenly spread frames."""

    video: VideoFile
    policy: Policy

    @classmethod
    def open(cls, path: Path, policy: Policy) -> Self:
        """Probe a video."""
        return cls(video=VideoFile.open(path), policy=policy)

    @property
    def content_digest(self) -> str:
        """SHA-256 of the file's bytes."""
        return self.policy.store.digests.digest(self.video.path)

    def encode(self, frames: FrameSettings) -> tuple[MediaReference | PlannedMedium, ...]:
        """One medium with the frames that the settings select.

        Raises:
            TrainerUsageError: The settings want its sound.
        """
        if frames.sound:
            raise TrainerUsageError(
                f"data.sound=true: no package here lets a model of type {self.policy.name} hear films; set it to false"
            )
        known = DatasetVideo(self.video, self.video.path, self.policy.store.digests)
        frame_indices, budget = plan_frames(self.video, frames), frame_budget(frames)
        encoder = self.policy.encoder
        if encoder is None:
            return (self.policy.encode_video(known, frame_indices, budget=budget),)
        return (PlannedMedium(video=known, plan=encoder.plan(known, frame_indices, budget=budget)),)


@dataclass(frozen=True, kw_only=True)
class ImageMedium:
    """An image."""

    image: ImageFile
    policy: Policy

    @classmethod
    def open(cls, path: Path, policy: Policy) -> Self:
        """Probe an image."""
        return cls(image=ImageFile.open(path), policy=policy)

    @property
    def content_digest(self) -> str:
        """SHA-256 of the file's bytes."""
        return self.policy.store.digests.digest(self.image.path)

    def encode(self, frames: FrameSettings) -> tuple[MediaReference | PlannedMedium, ...]:
        """One medium; the settings for frames apply to videos only."""
        known = DatasetVideo(self.image, self.image.path, self.policy.store.digests)
        encoder = self.policy.encoder
        if encoder is None:
            return (self.policy.encode_image(known),)
        return (PlannedMedium(video=known, plan=encoder.plan_image(known)),)


def hearing_families() -> frozenset[str]:
    """The families that may hear films: those whose media another package opens; the trainer only sees them."""
    return frozenset(entry.name for entry in entry_points(group=ENTRY_POINT_GROUP))


def opener_for(policy: Policy, kind: MediumKind) -> OpenMedium:
    """How files of a kind are opened for a policy: images as images, others as its family specifies, or as videos."""
    if kind is MediumKind.IMAGE:
        return ImageMedium.open
    entry = next((entry for entry in entry_points(group=ENTRY_POINT_GROUP) if entry.name == policy.name), None)
    return VideoMedium.open if entry is None else cast(OpenMedium, entry.load())
