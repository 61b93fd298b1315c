"""How colourful a picture or clip is, by its pixels alone: Hasler and Suesstrunk, Measuring colourfulness (SPIE 2003).

A reward that says nothing about prompts, and so one that is easy to exploit: for trials, and as a held-out one.
"""

from collections.abc import Sequence
from statistics import fmean
from typing import ClassVar

import torch
from torch import Tensor

from longrl_omni.generation.rewards.base import ClipRequest, PictureRequest, SampleRequest
from longrl_trainer.rewards.base import RewardResult, RewardStatus


class ColourfulnessReward:
    """Spread plus 0.3 times strength of the opponent colours, in units of the range of pixels.

    A clip has the mean of its frames.
    """

    judges: ClassVar[tuple[type[SampleRequest], ...]] = (PictureRequest, ClipRequest)

    def judge(self, requests: Sequence[SampleRequest]) -> list[RewardResult]:
        """Judge pictures or clips."""
        return [
            RewardResult(
                value=measure(request.picture)
                if isinstance(request, PictureRequest)
                else fmean(map(measure, request.clip)),
                status=RewardStatus.OK,
            )
            for request in requests
        ]


def measure(picture_3HW: Tensor) -> float:
    """The colourfulness of a picture with values from 0 to 1."""
    red, green, blue = picture_3HW.flatten(1)
    opponents = torch.stack([red - green, 0.5 * (red + green) - blue])
    spread, strength = opponents.std(dim=1, correction=0).norm(), opponents.mean(dim=1).norm()
    return float(spread + 0.3 * strength)
