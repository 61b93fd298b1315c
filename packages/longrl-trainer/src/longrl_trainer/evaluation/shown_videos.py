"""The videos of a benchmark as the model sees them: opened and encoded once for each number of frames.

Whatever is wrong with a video is a reason why its questions can't be asked, never an end of the run. Files are opened
inside the benchmark's folder alone, each by one rank; frames are encoded by all ranks together, unless the store has
them.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from longrl_files.folders import ForeignFolder
from longrl_trainer.config.sections import FrameSettings
from longrl_trainer.questions.encoding import Shown, encode_together, planned_among
from longrl_trainer.questions.media import opener_for
from longrl_trainer.questions.question import DroppedMedium, DropReason
from longrl_trainer.training.ranks import Ranks
from longvideo_reason_data.errors import DataError
from longvideo_reason_data.records.medium import MediumKind
from mrsp_engine.embeddings.reference import MediaReference
from mrsp_engine.encoding.parallel import PlannedMedium
from mrsp_engine.errors import UnfitMediumError
from mrsp_engine.families.base import Policy


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownFrames:
    """Which frames of a video were shown.

    Attributes:
        video: Its name in the benchmark's folder.
        digest: SHA-256 over the file's bytes, the frames' indices and times, and their size.
        num_frames: Number of frames; 0 for a family that isn't shown frames.
        height: Rows of a frame as the model sees it.
        width: Columns of a frame.
    """

    video: str
    digest: str
    num_frames: int
    height: int
    width: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownVideo:
    """An encoded video.

    Attributes:
        references: What a prompt holds in its place.
        seconds: Times of its frames.
        frames: For the record.
    """

    references: tuple[MediaReference, ...]
    seconds: tuple[float, ...]
    frames: ShownFrames


@dataclass(frozen=True, slots=True, kw_only=True)
class _Opened:
    digest: str
    shown: Shown


def show_videos(
    folder: ForeignFolder, names: Sequence[str], settings: FrameSettings, policy: Policy, ranks: Ranks
) -> dict[str, ShownVideo | DroppedMedium]:
    """Open and encode videos; all ranks call this together.

    Args:
        folder: The benchmark's folder.
        names: The videos in it.
        settings: How many frames, and how large.
        policy: Encodes what its store lacks.
        ranks: Processes that share the work.
    """
    found = ranks.divide(names, lambda share: [_open(folder, name, settings, policy) for name in share])
    shown = [opened.shown if isinstance(opened, _Opened) else opened for opened in found]
    encoded = encode_together(policy, shown, planned_among(shown), ranks)
    videos: dict[str, ShownVideo | DroppedMedium] = {}
    for name, opened, outcome in zip(names, found, encoded, strict=True):
        if isinstance(outcome, DroppedMedium):
            videos[name] = outcome
        elif isinstance(opened, _Opened):
            videos[name] = _describe(name, opened, outcome)
    return videos


def _open(folder: ForeignFolder, name: str, settings: FrameSettings, policy: Policy) -> _Opened | DroppedMedium:
    try:
        medium = opener_for(policy, MediumKind.VIDEO)(folder.path(name), policy)
        return _Opened(digest=medium.content_digest, shown=medium.encode(settings))
    except DataError as error:
        return DroppedMedium(reason=DropReason.UNREADABLE_VIDEO, detail=str(error))
    except UnfitMediumError as error:
        return DroppedMedium(reason=DropReason.UNFIT_MEDIUM, detail=f"{name}: {error}")


def _describe(name: str, opened: _Opened, references: tuple[MediaReference, ...]) -> ShownVideo:
    keys = [item.plan.embedding_key for item in opened.shown if isinstance(item, PlannedMedium)]
    digest = hashlib.sha256(opened.digest.encode())
    for key in keys:
        digest.update(f"{key.frame_indices}{key.timestamps}{key.height}x{key.width}".encode())
    return ShownVideo(
        references=references,
        seconds=tuple(microseconds / 1e6 for key in keys for microseconds in key.timestamps),
        frames=ShownFrames(
            video=name,
            digest=digest.hexdigest(),
            num_frames=sum(len(key.frame_indices) for key in keys),
            height=max((key.height for key in keys), default=0),
            width=max((key.width for key in keys), default=0),
        ),
    )
