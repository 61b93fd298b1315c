"""What a user allows a video beside what a checkpoint's own processor says: pixels of a frame, embeddings of it all.

Plain numbers, without torch: what plans a run ahead and what encodes its videos are given the same ones.
"""

from dataclasses import dataclass

from mrsp_engine.errors import EngineUsageError, UnfitMediumError

__all__ = ["UNLIMITED", "FrameBudget"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameBudget:
    """Limits on one video.

    Attributes:
        frame_pixels: Most pixels of a frame as the encoder sees it; without meaning where a model takes one size only.
        video_tokens: Most embeddings of the whole video; frames shrink until they keep to it.
    """

    frame_pixels: int | None = None
    video_tokens: int | None = None

    def __post_init__(self) -> None:
        for name in ("frame_pixels", "video_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise EngineUsageError(f"{name}={value}: expected 1 or more")

    def pixels_per_frame(self, num_groups: int, token_pixels: int) -> int | None:
        """Most pixels of a frame, in a video of so many groups whose embeddings stand for so many pixels each."""
        limits = [] if self.frame_pixels is None else [self.frame_pixels]
        if self.video_tokens is not None:
            limits.append(self.video_tokens // num_groups * token_pixels)
        return min(limits, default=None)

    def check(self, num_tokens: int) -> None:
        """Refuse a video of more embeddings.

        Raises:
            UnfitMediumError: It has more.
        """
        if self.video_tokens is not None and num_tokens > self.video_tokens:
            raise UnfitMediumError(
                f"a video of {num_tokens} embeddings, its frames as small as they can be: expected at most "
                f"video_tokens={self.video_tokens}; lower the number of frames, or raise video_tokens"
            )


UNLIMITED = FrameBudget()
"""No limits but the checkpoint's own."""
