"""The interface of a reward of pictures: that of the trainer (`longrl_trainer.rewards.base`) with other requests.

A reward judges all pictures of a step together and returns one `RewardResult` each; one without a value couldn't judge,
and its picture is omitted from its group. Classes are found by entry points of `ENTRY_POINT_GROUP`, and one with
settings of its own has a nested pydantic model `Settings`, as in the trainer.

Shape legend: 3 colour channels, H and W pixels of a picture.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from longrl_trainer.rewards.base import RewardResult

ENTRY_POINT_GROUP = "longrl_omni.generation.rewards"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PictureRequest:
    """One picture to judge."""

    prompt: str
    picture: Tensor
    """Values from 0 to 1, float32, in host memory."""


class PictureReward(Protocol):
    """The interface of the classes behind the entry points in the group `longrl_omni.generation.rewards`."""

    def judge(self, requests: Sequence[PictureRequest]) -> Sequence[RewardResult]:
        """Judge pictures, one result each, in their order."""
        ...
