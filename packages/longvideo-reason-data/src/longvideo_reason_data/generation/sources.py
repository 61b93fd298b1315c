"""The first stage of a build: which of the files are videos, their properties, and their paths in the dataset.

A video is identified by the digest of its bytes, so that nothing depends on names or on order. Little is stored per
video here, because a build may have very many.
"""

import os
import re
import shutil
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from longvideo_reason_data.atomic_files import atomic_path
from longvideo_reason_data.generation.settings import BuildSettings
from longvideo_reason_data.media.scenes import scene_segments
from longvideo_reason_data.media.segments import Segment, check_segments, fixed_windows, segments_between
from longvideo_reason_data.media.streams import all_errors_told
from longvideo_reason_data.media.subtitles.cues import digest_cues
from longvideo_reason_data.media.subtitles.reading import read_subtitles
from longvideo_reason_data.media.video_file import VideoFile
from longvideo_reason_data.records.folder import VIDEOS_NAME


class SourceVideo(BaseModel):
    """A video of the build.

    Attributes:
        path: The input file.
        digest: SHA-256 of its bytes.
        duration_seconds: Its length.
        borders: The starts of its segments, and the end of the last one, in seconds.
        speech_digest: Digest of its subtitles.
        speech_origin: Description of their source; empty if there are none.
        speech_problem: What can't be read; empty if everything can.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: Path
    digest: str
    duration_seconds: float
    borders: tuple[float, ...]
    speech_digest: str
    speech_origin: str = ""
    speech_problem: str = ""

    @property
    def num_segments(self) -> int:
        """Number of its segments."""
        return len(self.borders) - 1

    @property
    def segments(self) -> tuple[Segment, ...]:
        """Its segments."""
        return segments_between(self.borders)

    @property
    def dataset_path(self) -> str:
        """Path of the video in the dataset: `videos/NAME-DIGEST.SUFFIX`."""
        return f"{VIDEOS_NAME}/{file_name(self.path, self.digest)}"


def file_name(path: Path, digest: str) -> str:
    """Build the name of a file in the dataset from its original name and its digest: `NAME-DIGEST.SUFFIX`."""
    stem = re.sub(r"[^\w.-]+", "_", path.stem)[:60].strip("._") or "video"
    return f"{stem}-{digest[:12]}{path.suffix.lower()}"


def probe_source(path: Path, settings: BuildSettings) -> SourceVideo:
    """Probe a file.

    Raises:
        UsageError: When the decoder or the detector of scenes isn't installed.
        DataError: When it can't be read, or not exactly by this decoder.
    """
    with all_errors_told(path):
        video = VideoFile.open(path, decoder=settings.decoder)
        subtitles = read_subtitles(video, settings.subtitles)
        segments = cut_video(video, settings)
        return SourceVideo(
            path=path.absolute(),
            digest=video.content_digest,
            duration_seconds=video.duration_seconds,
            borders=(*(segment.start_seconds for segment in segments), segments[-1].end_seconds),
            speech_digest=digest_cues(subtitles.cues),
            speech_origin=subtitles.origin,
            speech_problem=subtitles.problem,
        )


def cut_video(video: VideoFile, settings: BuildSettings) -> tuple[Segment, ...]:
    """Cut a video as specified in the settings."""
    if settings.segments == "scenes":
        segments = scene_segments(video, settings.scenes)
    else:
        segments = fixed_windows(video.duration_seconds, window_seconds=settings.window_seconds)
    check_segments(segments, video.duration_seconds)
    return segments


def place_video(source: SourceVideo, output: Path) -> None:
    """Add a video to the dataset: as a hard link on the same disk, else as a copy. Does nothing if it is there.

    Raises:
        DataError: When it can't be written.
    """
    place_file(source.path, output / source.dataset_path)


def place_file(path: Path, target: Path) -> None:
    """Put a file at another path: as a hard link on the same disk, else as a copy. Does nothing if it is there.

    Raises:
        DataError: When it can't be written.
    """
    if target.exists() and target.stat().st_size == path.stat().st_size:
        return
    with atomic_path(target) as temporary:
        try:
            os.link(path.resolve(), temporary)
        except OSError:
            shutil.copyfile(path, temporary)
