"""VILA's projector: from the vision tower's patches to rows for the language model.

The names of the weights (`layers.1.weight`, …) are those of published checkpoints, and so is every peculiarity: a side
that isn't divisible is padded with zeros, and the first release of the code wrote the rows of `mlp_downsample` column
by column, all later ones row by row.

Shape legend: F frames, H and W patches per side, C channels of the tower, N rows, D hidden size.
"""

import re

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from mrsp_engine.errors import EngineUsageError

__all__ = ["VilaProjector"]

_PLAIN_MLP = re.compile(r"mlp([1-9])x_gelu")


class DownSample(nn.Module):
    """Concatenate `factor` × `factor` neighbours into one: [F, H, W, C] to [F, N, C × factor²].

    Args:
        factor: Neighbours per side.
        is_by_columns: Write rows column by column, as the first release did.
    """

    def __init__(self, factor: int, *, is_by_columns: bool = False) -> None:
        super().__init__()
        self.factor = factor
        self.is_by_columns = is_by_columns

    def forward(self, patches_FHWC: Tensor) -> Tensor:
        """Concatenate neighbours."""
        factor = self.factor
        height, width, channels = patches_FHWC.shape[1:]
        filled = pad(patches_FHWC, (0, 0, 0, -width % factor, 0, -height % factor))
        blocks = filled.unflatten(2, (-1, factor)).unflatten(1, (-1, factor))  # [F, H', factor, W', factor, C]
        order = (0, 3, 1, 2, 4, 5) if self.is_by_columns else (0, 1, 3, 2, 4, 5)
        return blocks.permute(*order).reshape(len(filled), -1, factor * factor * channels)


class VilaProjector(nn.Module):
    """The projector of one checkpoint.

    Args:
        projector_type: Its name in the checkpoint, such as `mlp_downsample_2x2_fix`.
        vision_width: Channels C of the tower.
        hidden_size: Channels D of the language model.
        is_by_columns: Whether concatenated neighbours are written column by column.

    Raises:
        EngineUsageError: There is no such projector.
    """

    def __init__(
        self, projector_type: str, *, vision_width: int, hidden_size: int, is_by_columns: bool = False
    ) -> None:
        super().__init__()
        self.projector_type = projector_type
        layers, self.factor = _layers(projector_type, vision_width, hidden_size, is_by_columns=is_by_columns)
        self.layers = nn.Sequential(*layers)

    def rows_per_side(self, patches_per_side: int) -> int:
        """Rows per side after projecting a square of patches."""
        return -(-patches_per_side // self.factor)

    def forward(self, patches_FHWC: Tensor) -> Tensor:
        """Project a square of patches: [F, H, W, C] to [F, N, D]."""
        return self.layers(patches_FHWC if self.factor > 1 else patches_FHWC.flatten(1, 2))


def _layers(
    projector_type: str, vision_width: int, hidden_size: int, *, is_by_columns: bool
) -> tuple[list[nn.Module], int]:
    """The layers of a type, and how many neighbours per side it concatenates."""
    if projector_type in ("mlp_downsample", "mlp_downsample_2x2_fix"):
        joined = 4 * vision_width
        return [
            DownSample(2, is_by_columns=is_by_columns),
            nn.LayerNorm(joined),
            nn.Linear(joined, hidden_size),
            nn.GELU(),
            nn.Linear(hidden_size, hidden_size),
        ], 2
    if projector_type == "mlp_downsample_3x3_fix":
        return [
            DownSample(3, is_by_columns=is_by_columns),
            nn.LayerNorm(9 * vision_width),
            nn.Linear(9 * vision_width, 3 * vision_width),
            nn.GELU(),
            nn.LayerNorm(3 * vision_width),
            nn.Linear(3 * vision_width, hidden_size),
            nn.GELU(),
            nn.Linear(hidden_size, hidden_size),
        ], 3
    plain = _PLAIN_MLP.fullmatch(projector_type)
    if plain is not None:
        layers: list[nn.Module] = [nn.Linear(vision_width, hidden_size)]
        for _ in range(int(plain[1]) - 1):
            layers += [nn.GELU(), nn.Linear(hidden_size, hidden_size)]
        return layers, 1
    raise EngineUsageError(
        f"mm_projector_type={projector_type!r}: expected mlp_downsample, mlp_downsample_2x2_fix, "
        "mlp_downsample_3x3_fix or mlp2x_gelu; set another model folder"
    )


def pool_mean(rows: Tensor, factor: int, dim: int) -> Tensor:
    """Mean over groups of `factor` neighbours along one dimension, whose length must be divisible."""
    return rows if factor == 1 else torch.unflatten(rows, dim, (-1, factor)).mean(dim + 1)
