"""Frame sizes and token counts of videos for Qwen2.5-VL and Qwen3-VL: arithmetic without torch.

The rules are those of the checkpoints' processors. Qwen2.5-VL bounds the number of pixels of a frame, Qwen3-VL that of
a whole video. The encoder and the planner both use this module, so their counts agree.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mrsp_engine.encoding.frame_budget import PIXELS_PER_STRETCH, UNLIMITED, FrameBudget
from mrsp_engine.errors import EngineUsageError, UnfitMediumError

__all__ = ["QwenFrames", "middle_seconds", "seconds_per_group", "write_time"]

TOKEN_SHARE_FOR_VIDEO = 0.9
"""Share of the processor's `max_video_tokens` that Qwen2.5-VL's per-frame cap distributes over the frames."""

MOST_ASPECT_RATIO = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class QwenFrames:
    """How a checkpoint's processor sizes frames.

    Attributes:
        patch_size: Pixels along a patch's edge.
        merge_size: Patches along the edge of the square that becomes one embedding.
        frames_per_group: Frames that are encoded together (a temporal patch).
        min_pixels: Minimum pixels of a frame, or of all frames.
        max_pixels: Maximum pixels of a frame, or of all frames.
        is_whole_video: Whether these limits count the pixels of all frames together.
        is_resized: Whether frames are resized at all; otherwise their sides must be multiples of a merged patch.
        capped_tokens: Maximum tokens of a whole video, if the processor limits frames by it.

    Raises:
        EngineUsageError: Even the smallest frames would be too large to be encoded.
    """

    patch_size: int
    merge_size: int
    frames_per_group: int
    min_pixels: int
    max_pixels: int
    is_whole_video: bool = False
    is_resized: bool = True
    capped_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.min_pixels > PIXELS_PER_STRETCH:
            raise EngineUsageError(
                f"the checkpoint's processor enlarges frames to {self.min_pixels:,} pixels, expected at most "
                f"{PIXELS_PER_STRETCH:,}; correct its min_pixels or size"
            )

    @property
    def factor(self) -> int:
        """Pixels along the edge of the square that becomes one embedding."""
        return self.patch_size * self.merge_size

    def num_groups(self, num_frames: int) -> int:
        """Number of groups of the given number of frames; the last one is padded."""
        return -(-num_frames // self.frames_per_group)

    def size(self, height: int, width: int, num_frames: int, budget: FrameBudget = UNLIMITED) -> tuple[int, int]:
        """Rows and columns of a frame as the tower sees it, in a video of `num_frames`.

        Raises:
            UnfitMediumError: Such frames can't be resized to an allowed size.
        """
        num_groups = self.num_groups(num_frames)
        allowed = budget.pixels_per_frame(num_groups, self.factor**2)
        size = self._fit(height, width, num_frames, None, self.min_pixels)
        if allowed is None or size[0] * size[1] <= allowed:
            return size
        budget.check(num_groups)  # a group has at least one embedding
        for min_pixels in (self.min_pixels, 1):
            size = self._fit(height, width, num_frames, allowed, min_pixels)
            if size[0] * size[1] <= allowed:
                return size
        raise UnfitMediumError(
            f"{num_frames} frames of {height}×{width}: {size[0]}×{size[1]} is the smallest they can be; expected at "
            f"most {allowed} pixels by frame_pixels={budget.frame_pixels} and video_tokens={budget.video_tokens}; "
            "raise them"
        )

    def num_tokens(self, height: int, width: int, num_frames: int) -> int:
        """Number of embeddings of a video whose frames are already resized."""
        return self.num_groups(num_frames) * (height // self.factor) * (width // self.factor)

    def _fit(self, height: int, width: int, num_frames: int, allowed: int | None, min_pixels: int) -> tuple[int, int]:
        """The processor's size, with at most `allowed` pixels where possible."""
        factor = self.factor
        if not self.is_resized:
            if height % factor or width % factor:
                raise UnfitMediumError(
                    f"frames of {height}×{width}: the checkpoint's processor doesn't resize and needs multiples of "
                    f"{factor}; set do_resize in its processor_config.json"
                )
            return height, width
        counted = filled = 1
        given = f"{height}×{width}"
        if self.is_whole_video:
            counted = max(num_frames, self.frames_per_group)  # a single frame is repeated
            filled = round(counted / self.frames_per_group) * self.frames_per_group
            if height < factor or width < factor:
                scale = max(factor / height, factor / width)
                height, width = int(height * scale), int(width * scale)
        if max(height, width) / min(height, width) > MOST_ASPECT_RATIO:
            raise UnfitMediumError(
                f"frames of {given}: one side is more than {MOST_ASPECT_RATIO} times the other, which the checkpoint's "
                "processor doesn't accept"
            )
        max_pixels = self._most_pixels(num_frames if not self.is_whole_video else counted)
        if allowed is not None:
            max_pixels = min(max_pixels, allowed * filled)
        rows, columns = round(height / factor) * factor, round(width / factor) * factor
        if filled * rows * columns > max_pixels:
            shrink = math.sqrt((counted * height * width) / max_pixels)
            rows = max(factor, math.floor(height / shrink / factor) * factor)
            columns = max(factor, math.floor(width / shrink / factor) * factor)
        elif filled * rows * columns < min_pixels:
            grow = math.sqrt(min_pixels / (counted * height * width))
            rows = math.ceil(height * grow / factor) * factor
            columns = math.ceil(width * grow / factor) * factor
        return rows, columns

    def _most_pixels(self, num_frames: int) -> int:
        """Pixel limits of a frame, or of all frames, with the processor's cap on long videos."""
        if self.capped_tokens is None:
            return self.max_pixels
        token_pixels, least = self.factor**2, int(self.min_pixels * 1.05)
        if self.is_whole_video:
            share = min(self.capped_tokens * token_pixels, self.max_pixels // num_frames)
            return max(share, least) * num_frames
        all_pixels = int(self.capped_tokens * token_pixels * TOKEN_SHARE_FOR_VIDEO)
        return max(min(self.max_pixels, all_pixels * self.frames_per_group // num_frames), least)


def middle_seconds(seconds: Sequence[float], frames_per_group: int) -> tuple[float, ...]:
    """The midpoint between the first and last frame of every group; a missing frame repeats the last one."""
    filled = [*seconds, *[seconds[-1]] * (-len(seconds) % frames_per_group)]
    return tuple(
        (filled[first] + filled[first + frames_per_group - 1]) / 2 for first in range(0, len(filled), frames_per_group)
    )


def seconds_per_group(seconds: Sequence[float], frames_per_group: int) -> float:
    """Mean seconds between groups of frames, rounded to float32 like in the sampler.

    A single frame has no interval and only one temporal position; one second per frame is assumed.
    """
    intervals = len(seconds) - 1
    mean_interval = (seconds[-1] - seconds[0]) / intervals if intervals else 1.0
    return float(np.float32(mean_interval * frames_per_group))


def write_time(seconds: float) -> str:
    """The text that Qwen3-VL reads before every group of frames."""
    return f"<{seconds:.1f} seconds>"
