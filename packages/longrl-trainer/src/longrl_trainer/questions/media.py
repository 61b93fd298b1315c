"""The file a question is about, as a stage meets it: opened, told by its digest, encoded.

A video is the trainer's own case: its frames are planned here and encoded later, by all ranks together. A family that
takes something else brings its medium through an entry point in the group `longrl_trainer.media`, under the family's
name; nothing here names one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Protocol, Self, cast

import numpy as np
import numpy.typing as npt

from longrl_trainer.config.sections import DataSection
from longrl_trainer.questions.frames import frame_budget, plan_frames
from longvideo_reason_data.errors import DataError
from longvideo_reason_data.media.video_file import VideoFile
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

    def encode(self, data: DataSection) -> tuple[MediaReference | PlannedMedium, ...]:
        """Refer to what the model is shown of it, encoding what the policy's store lacks; may be nothing.

        Frames are only planned, and encoded later by all ranks together. Of all ranks, one alone calls this. The
        settings have no preset any more.

        Raises:
            DataError: The file can't be used.
            UnfitMediumError: The model can't take it.
        """
        ...


OpenMedium = Callable[[Path, Policy], Medium]
"""Opens a file for a policy; raises `DataError` when the file can't be used."""


class DatasetVideo(FileVideo):
    """A dataset's video, whose faults the engine hears under its own name for them."""

    def read(self, indices: Sequence[int]) -> npt.NDArray[np.uint8]:
        """See `Video.read`."""
        try:
            return super().read(indices)
        except DataError as error:
            raise UnreadableMediumError(str(error)) from error


@dataclass(frozen=True, kw_only=True)
class VideoMedium:
    """A video, of which evenly spread frames are shown."""

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

    def encode(self, data: DataSection) -> tuple[MediaReference | PlannedMedium, ...]:
        """One medium of the frames that the settings choose."""
        known = DatasetVideo(self.video, self.video.path, self.policy.store.digests)
        frame_indices, budget = plan_frames(self.video, data), frame_budget(data)
        encoder = self.policy.encoder
        if encoder is None:
            return (self.policy.encode_video(known, frame_indices, budget=budget),)
        return (PlannedMedium(video=known, plan=encoder.plan(known, frame_indices, budget=budget)),)


def opener_for(policy: Policy) -> OpenMedium:
    """How files are opened for a policy: as its family says, and as videos if it says nothing."""
    entry = next((entry for entry in entry_points(group=ENTRY_POINT_GROUP) if entry.name == policy.name), None)
    return VideoMedium.open if entry is None else cast(OpenMedium, entry.load())
