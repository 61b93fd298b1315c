"""The interface of a reward of pictures or clips: that of `longrl_trainer.rewards.base`, with other requests.

A reward judges all samples of a step together and returns one `RewardResult` each; one without a value couldn't judge,
and its sample is omitted from its group. Its attribute `judges` names the kinds of requests it takes; without it, those
are pictures. Classes are found by entry points of `ENTRY_POINT_GROUP`, and one with settings of its own has a nested
pydantic model `Settings`, as in the trainer.

Shape legend: F frames of a clip, 3 colour channels, H and W pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from longrl_trainer.rewards.base import RewardResult

ENTRY_POINT_GROUP = "longrl_omni.generation.rewards"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PictureRequest:
    """One picture to judge."""

    prompt: str
    picture: Tensor
    """[3, H, W] with values from 0 to 1, float32, in host memory."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ClipRequest:
    """One clip to judge."""

    prompt: str
    clip: Tensor
    """[F, 3, H, W] with values from 0 to 1, float32, in host memory."""
    frames_per_second: float


SampleRequest = PictureRequest | ClipRequest


class GenerationReward(Protocol):
    """The interface of the classes behind the entry points in the group `longrl_omni.generation.rewards`."""

    def judge(self, requests: Sequence[Any]) -> Sequence[RewardResult]:
        """Judge samples, all of one of the kinds that the class names in `judges`; one result each, in their order."""
        ...


def kinds_judged_by(reward: object) -> tuple[type[SampleRequest], ...]:
    """What a reward, or its class, can be asked about."""
    return getattr(reward, "judges", (PictureRequest,))


def name_kind(kind: type[SampleRequest]) -> str:
    """What requests of a kind are about, as a word."""
    return "clips" if kind is ClipRequest else "pictures"
