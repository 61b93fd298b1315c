"""How many rows the frames of a video become for VILA, whose frames have one size: arithmetic without torch."""

from dataclasses import dataclass

from mrsp_engine.encoding.frame_budget import UNLIMITED, FrameBudget
from mrsp_engine.errors import EngineUsageError, UnfitMediumError
from mrsp_engine.families.vila.config import MediaSyntax

__all__ = ["VilaFrames"]


@dataclass(frozen=True, slots=True, kw_only=True)
class VilaFrames:
    """The frames of a checkpoint.

    Attributes:
        rows_per_side: Rows along the edge of a frame, behind the projector.
        syntax: How many frames and rows are joined into one.
    """

    rows_per_side: int
    syntax: MediaSyntax

    def grid(self, num_frames: int, budget: FrameBudget = UNLIMITED) -> tuple[int, int, int]:
        """Frames that stand in the prompt, and rows and columns of each, for a video of `num_frames`.

        Raises:
            UnfitMediumError: The checkpoint can't join so many frames, or the budget doesn't take them.
            EngineUsageError: The checkpoint's numbers don't fit each other.
        """
        pool_rows, pool_columns = self.syntax.pool[1:]
        joined, side = self.syntax.frames_per_pool(num_frames), self.rows_per_side
        if num_frames % joined:
            raise UnfitMediumError(
                f"{num_frames} frames: this checkpoint joins {joined} frames into one and needs a multiple of "
                f"{joined}; change the number of frames"
            )
        if side % pool_rows or side % pool_columns:
            raise EngineUsageError(f"pool of {pool_rows}×{pool_columns}: {side}×{side} rows of a frame don't divide")
        grid = (num_frames // joined, side // pool_rows, side // pool_columns)
        budget.check(grid[0] * grid[1] * grid[2])
        return grid
