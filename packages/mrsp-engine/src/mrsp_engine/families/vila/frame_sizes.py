"""How many rows a video's frames become for VILA, whose frames all have one size: arithmetic without torch."""

from dataclasses import dataclass

from mrsp_engine.encoding.frame_budget import UNLIMITED, FrameBudget
from mrsp_engine.errors import EngineUsageError, UnfitMediumError
from mrsp_engine.families.vila.config import MediaSyntax

__all__ = ["VilaFrames"]


@dataclass(frozen=True, slots=True, kw_only=True)
class VilaFrames:
    """The frame geometry of a checkpoint.

    Attributes:
        rows_per_side: Embedding rows along the edge of a frame, after the projector.
        syntax: How many frames and rows are pooled into one.
    """

    rows_per_side: int
    syntax: MediaSyntax

    def grid(self, num_frames: int, budget: FrameBudget = UNLIMITED) -> tuple[int, int, int]:
        """Number of frames in the prompt, and rows and columns of each, for a video of `num_frames`.

        Raises:
            UnfitMediumError: The checkpoint can't pool this number of frames, or they exceed the budget.
            EngineUsageError: The checkpoint's numbers are inconsistent.
        """
        pool_rows, pool_columns = self.syntax.pool[1:]
        joined, side = self.syntax.frames_per_pool(num_frames), self.rows_per_side
        if num_frames % joined:
            raise UnfitMediumError(
                f"{num_frames} frames: this checkpoint pools {joined} frames into one and needs a multiple of "
                f"{joined}; change the number of frames"
            )
        if side % pool_rows or side % pool_columns:
            raise EngineUsageError(f"pool of {pool_rows}×{pool_columns}: a frame's {side}×{side} rows aren't divisible")
        grid = (num_frames // joined, side // pool_rows, side // pool_columns)
        budget.check(grid[0] * grid[1] * grid[2])
        return grid
