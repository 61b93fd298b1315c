"""Segments that follow the scenes of a video: its cuts are detected by PySceneDetect (extra `scenes`).

The detector receives frames decoded by this package, one by one, so a cut is the exact time of the first frame after
it. All its settings are given here, because its own defaults change between versions. Scenes that are too short are
merged with their neighbours and long ones are cut into equal parts, so segments of any video have similar lengths.
"""

from collections.abc import Sequence
from fractions import Fraction
from typing import Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from longvideo_reason_data.errors import UsageError
from longvideo_reason_data.media.segments import Segment, segments_between
from longvideo_reason_data.media.video_file import VideoFile


class SceneSettings(BaseModel):
    """How scenes are detected and turned into segments."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    min_seconds: float = Field(default=2.0, gt=0)
    """A scene shorter than this is merged with the next, the last one with the one before."""
    max_seconds: float = Field(default=10.0, gt=0)
    """A scene longer than this is cut into equal parts."""
    adaptive_threshold: float = Field(default=3.0, gt=0)
    """A cut changes the frame this many times as much as the neighbouring frames do."""
    window_frames: int = Field(default=2, ge=1)
    """Number of frames on either side that count as neighbouring."""
    min_change: float = Field(default=15.0, gt=0)
    """A cut changes hue, saturation and lightness by at least this much on average, of 255."""
    detector_width: int = Field(default=256, ge=16)
    """The detector sees every n-th pixel of wider frames, with n such that at least half this width is left."""

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        if self.max_seconds < 2 * self.min_seconds:
            raise ValueError(
                f"max_seconds is {self.max_seconds}, expected at least twice min_seconds ({self.min_seconds})"
            )
        return self


def scene_segments(video: VideoFile, settings: SceneSettings) -> tuple[Segment, ...]:
    """Cut a video at its scenes; every frame is decoded.

    Raises:
        UsageError: When the extra isn't installed.
        DataError: When a frame can't be decoded.
    """
    cuts = video.timestamps[find_cuts(video, settings)]
    return segments_from_cuts(
        cuts.tolist(), video.duration_seconds, min_seconds=settings.min_seconds, max_seconds=settings.max_seconds
    )


def detector_version() -> str:
    """Name the detector, for a dataset's manifest.

    Raises:
        UsageError: When the extra isn't installed.
    """
    try:
        import scenedetect
    except ImportError as error:
        raise UsageError(
            f"scenes can't be found ({error}); install longvideo-reason-data[scenes] or use fixed windows"
        ) from error
    return f"scenedetect {scenedetect.__version__}"


def find_cuts(video: VideoFile, settings: SceneSettings) -> list[int]:
    """Find the frames that begin a new scene, without the first frame of the video; ascending.

    Raises:
        UsageError: When the extra isn't installed.
        DataError: When a frame can't be decoded.
    """
    detector_version()
    from scenedetect import AdaptiveDetector, ContentDetector, FrameTimecode

    detector = AdaptiveDetector(
        adaptive_threshold=settings.adaptive_threshold,
        min_scene_len=0,
        window_width=settings.window_frames,
        min_content_val=settings.min_change,
        weights=ContentDetector.Components(delta_hue=1.0, delta_sat=1.0, delta_lum=1.0, delta_edges=0.0),
        luma_only=False,
    )
    step = max(1, video.width // settings.detector_width)
    rate = Fraction(25)  # the detector counts frames; their real times are looked up afterwards
    found: set[int] = set()
    number = 0
    for number, pixels in video.frames(range(video.frame_count)):
        blue_green_red = np.ascontiguousarray(pixels[::step, ::step, ::-1])
        found.update(cut.frame_num for cut in detector.process_frame(FrameTimecode(number, rate), blue_green_red))
    found.update(cut.frame_num for cut in detector.post_process(FrameTimecode(number, rate)))
    return sorted(found - {0})


def segments_from_cuts(
    cuts: Sequence[float], duration_seconds: float, *, min_seconds: float, max_seconds: float
) -> tuple[Segment, ...]:
    """Turn the times of cuts into segments.

    Args:
        cuts: Seconds from the first frame, strictly ascending, inside the video.
        duration_seconds: Length of the video.
        min_seconds: A scene shorter than this is merged with the next, the last one with the one before.
        max_seconds: A scene longer than this is cut into equal parts.

    Raises:
        UsageError: When parts of a long scene could be shorter than the shortest scene.
    """
    if max_seconds < 2 * min_seconds:
        raise UsageError(f"max_seconds is {max_seconds}, expected at least twice min_seconds ({min_seconds})")
    kept: list[float] = [0.0]
    for cut in cuts:
        if cut - kept[-1] >= min_seconds:
            kept.append(cut)
    if len(kept) > 1 and duration_seconds - kept[-1] < min_seconds:
        kept.pop()
    borders: list[float] = []
    for start, end in zip(kept, [*kept[1:], duration_seconds], strict=True):
        num_parts = max(1, int(np.ceil((end - start) / max_seconds - 1e-9)))
        borders += [start + part * ((end - start) / num_parts) for part in range(num_parts)]
    return segments_between([*borders, duration_seconds])
