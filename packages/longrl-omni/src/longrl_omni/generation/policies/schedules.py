"""Noise levels: an explicit list from noise to clean, which is all that a sampler has to know of a schedule."""

from collections.abc import Sequence
from itertools import pairwise
from typing import TypeVar

from torch import Tensor

from longrl_trainer.errors import TrainerUsageError

LevelT = TypeVar("LevelT", float, Tensor)


def shifted_levels(num_steps: int, *, shift: float, first: float = 1.0) -> tuple[float, ...]:
    """Evenly spaced levels, shifted towards noise.

    Args:
        num_steps: Number of steps, one less than that of levels.
        shift: 1 changes nothing.
        first: The first level before the shift.
    """
    levels = [first * (1.0 - step / num_steps) for step in range(num_steps + 1)]
    return tuple(shift_level(level, shift=shift) for level in levels)


def shift_level(level: LevelT, *, shift: float) -> LevelT:
    """One level, or a tensor of them, shifted: s -> shift s / (1 + (shift - 1) s), SD3 (arXiv 2403.03206), eq. 23."""
    return shift * level / (1.0 + (shift - 1.0) * level)


def check_levels(levels: Sequence[float]) -> None:
    """Refuse a list that isn't a schedule.

    Raises:
        TrainerUsageError: It doesn't fall from at most 1 to 0.
    """
    falls = all(here > there for here, there in pairwise(levels))
    if len(levels) < 2 or not falls or levels[0] > 1.0 or levels[-1] != 0.0:
        shown = ", ".join(f"{level:g}" for level in levels[:6])
        raise TrainerUsageError(f"noise levels {shown}, …: expected at least two that fall from at most 1 to 0")
