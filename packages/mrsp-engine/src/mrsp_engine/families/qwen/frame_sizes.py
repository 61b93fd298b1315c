"""How large the frames of a video become for Qwen2.5-VL and Qwen3-VL, and in how many tokens: arithmetic without torch.

The rules are those of the checkpoints' processors. Qwen2.5-VL holds a frame between two numbers of pixels, Qwen3-VL a
whole video. The encoder and the planner both go by this module, so they count alike.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mrsp_engine.encoding.frame_budget import UNLIMITED, FrameBudget
from mrsp_engine.errors import UnfitMediumError

__all__ = ["QwenFrames", "middle_seconds", "write_time"]

TOKEN_SHARE_FOR_VIDEO = 0.9
"""Part of the processor's `max_video_tokens` that Qwen2.5-VL's per-frame cap distributes over the frames."""

MOST_ASPECT_RATIO = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class QwenFrames:
    """The frames of a checkpoint's processor.

    Attributes:
        patch_size: Pixels along a patch's edge.
        merge_size: Patches along the edge of what becomes one embedding.
        frames_per_group: Frames that are encoded together (a temporal patch).
        min_pixels: Fewest pixels of a frame, or of all frames.
        max_pixels: Most pixels of a frame, or of all frames.
        is_whole_video: Whether these are pixels of all frames together.
        is_resized: Whether frames are resized at all; otherwise they must come in multiples of a merged patch.
        capped_tokens: Tokens that a whole video is held to, if the processor caps frames by that.
    """

    patch_size: int
    merge_size: int
    frames_per_group: int
    min_pixels: int
    max_pixels: int
    is_whole_video: bool = False
    is_resized: bool = True
    capped_tokens: int | None = None

    @property
    def factor(self) -> int:
        """Pixels along the edge of what becomes one embedding."""
        return self.patch_size * self.merge_size

    def num_groups(self, num_frames: int) -> int:
        """Groups that so many frames make; the last is filled up."""
        return -(-num_frames // self.frames_per_group)

    def size(self, height: int, width: int, num_frames: int, budget: FrameBudget = UNLIMITED) -> tuple[int, int]:
        """Rows and columns of a frame as the tower sees it, in a video of `num_frames`.

        Raises:
            UnfitMediumError: Frames like these can't be brought to a size that is allowed.
        """
        num_groups = self.num_groups(num_frames)
        allowed = budget.pixels_per_frame(num_groups, self.factor**2)
        size = self._fit(height, width, num_frames, None, self.min_pixels)
        if allowed is None or size[0] * size[1] <= allowed:
            return size
        budget.check(num_groups)  # one embedding is the least that a group can be
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
        """Embeddings of a video of frames that have their size already."""
        return self.num_groups(num_frames) * (height // self.factor) * (width // self.factor)

    def _fit(self, height: int, width: int, num_frames: int, allowed: int | None, min_pixels: int) -> tuple[int, int]:
        """The processor's size, of at most `allowed` pixels where that is possible."""
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
                "processor doesn't take"
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
        """Of a frame, or of all frames, with the processor's cap on long videos."""
        if self.capped_tokens is None:
            return self.max_pixels
        token_pixels, least = self.factor**2, int(self.min_pixels * 1.05)
        if self.is_whole_video:
            share = min(self.capped_tokens * token_pixels, self.max_pixels // num_frames)
            return max(share, least) * num_frames
        all_pixels = int(self.capped_tokens * token_pixels * TOKEN_SHARE_FOR_VIDEO)
        return max(min(self.max_pixels, all_pixels * self.frames_per_group // num_frames), least)


def middle_seconds(seconds: Sequence[float], frames_per_group: int) -> tuple[float, ...]:
    """The middle between the first and the last frame of every group, the last frame repeated where one lacks."""
    filled = [*seconds, *[seconds[-1]] * (-len(seconds) % frames_per_group)]
    return tuple(
        (filled[first] + filled[first + frames_per_group - 1]) / 2 for first in range(0, len(filled), frames_per_group)
    )


def write_time(seconds: float) -> str:
    """What Qwen3-VL reads before every group of frames."""
    return f"<{seconds:.1f} seconds>"
