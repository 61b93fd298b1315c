"""Limits on a video beyond those of the checkpoint's processor: the user's, and what is encoded at a time.

Plain numbers, without torch: the planner and the encoder use the same limits.
"""

from dataclasses import dataclass

from mrsp_engine.errors import EngineUsageError, UnfitMediumError

__all__ = ["PIXELS_PER_STRETCH", "UNLIMITED", "FrameBudget"]

PIXELS_PER_STRETCH = 2**26
"""Maximum number of pixels decoded and encoded at a time, as the tower sees them; a group with more is refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameBudget:
    """Limits on one video.

    Attributes:
        frame_pixels: Maximum pixels of a frame as the encoder sees it; ignored where a model accepts one size only.
        video_tokens: Maximum embeddings of the whole video; frames are shrunk until they fit.
    """

    frame_pixels: int | None = None
    video_tokens: int | None = None

    def __post_init__(self) -> None:
        for name in ("frame_pixels", "video_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise EngineUsageError(f"{name}={value}: expected 1 or more")

    def pixels_per_frame(self, num_groups: int, token_pixels: int) -> int | None:
        """Maximum pixels of a frame, given the video's number of groups and the pixels per embedding."""
        limits = [] if self.frame_pixels is None else [self.frame_pixels]
        if self.video_tokens is not None:
            limits.append(self.video_tokens // num_groups * token_pixels)
        return min(limits, default=None)

    def check(self, num_tokens: int) -> None:
        """Refuse a video with too many embeddings.

        Raises:
            UnfitMediumError: It has more than allowed.
        """
        if self.video_tokens is not None and num_tokens > self.video_tokens:
            raise UnfitMediumError(
                f"a video of {num_tokens} embeddings, its frames as small as they can be: expected at most "
                f"video_tokens={self.video_tokens}; lower the number of frames, or raise video_tokens"
            )


UNLIMITED = FrameBudget()
"""No limits except the checkpoint's own."""
