"""How smoothly clips move, by their pixels alone, after the motion smoothness of VBench (arXiv 2311.17982).

There frames are left out, drawn again between their neighbours by a network that interpolates, and compared with those
left out. Here the mean of the neighbours takes the place of the network, so that the same clip has the same value
everywhere: right for what flickers, is dirty or jumps, while fast clean motion costs a little too. A clip that stands
still is perfectly smooth, and so this is a reward to hold out rather than to train by.

Shape legend: F frames of a clip, 3 colour channels, H and W pixels.
"""

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from longrl_omni.generation.rewards.base import ClipRequest, SampleRequest
from longrl_trainer.errors import TrainerUsageError
from longrl_trainer.rewards.base import RewardResult, RewardStatus

LEAST_FRAMES = 3


class SmoothnessReward:
    """1 minus the mean absolute difference between a frame and the mean of its neighbours; 1 for a clip that stands."""

    judges: ClassVar[tuple[type[SampleRequest], ...]] = (ClipRequest,)

    def judge(self, requests: Sequence[ClipRequest]) -> list[RewardResult]:
        """Judge clips.

        Raises:
            TrainerUsageError: They have too few frames.
        """
        return [RewardResult(value=measure_smoothness(one.clip), status=RewardStatus.OK) for one in requests]


def measure_smoothness(clip_F3HW: Tensor) -> float:
    """The smoothness of a clip with values from 0 to 1.

    Raises:
        TrainerUsageError: It has fewer than three frames.
    """
    if len(clip_F3HW) < LEAST_FRAMES:
        raise TrainerUsageError(
            f"rewards.smoothness: a clip has {len(clip_F3HW)} frames, expected at least {LEAST_FRAMES}; set "
            "`sampling.frames`"
        )
    between_F3HW = (clip_F3HW[:-2] + clip_F3HW[2:]) / 2
    return 1.0 - float((clip_F3HW[1:-1] - between_F3HW).abs().mean())
