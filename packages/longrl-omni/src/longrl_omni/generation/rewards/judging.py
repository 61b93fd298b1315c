"""Rewards of pictures from the names in a recipe, and what they say about the pictures of a step."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from longrl_omni.generation.rewards.base import ENTRY_POINT_GROUP, PictureRequest, PictureReward
from longrl_trainer.errors import TrainerError, TrainerUsageError
from longrl_trainer.rewards.base import RewardResult
from longrl_trainer.rewards.registry import WeightedReward, check_results, load_rewards


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedPictures:
    """What the rewards say about some pictures, in their order.

    Attributes:
        results: Every reward's judgements by its name.
        weights: Every reward's weight by its name.
    """

    results: Mapping[str, Sequence[RewardResult]]
    weights: Mapping[str, float]

    def values(self, name: str) -> list[float | None]:
        """The values of one reward."""
        return [result.value for result in self.results[name]]

    def totals(self) -> list[float | None]:
        """The weighted sum for every picture; None where a reward with a weight couldn't judge."""
        terms = [(self.weights[name], self.values(name)) for name in self.results if self.weights[name]]
        return [
            None
            if None in of_one
            else sum(weight * cast(float, value) for (weight, _), value in zip(terms, of_one, strict=True))
            for of_one in zip(*(values for _, values in terms), strict=True)
        ]

    def means(self) -> dict[str, float | None]:
        """The mean of every reward over the pictures that it could judge."""
        return {name: mean_of(self.values(name)) for name in self.results}


def load_picture_rewards(recipe: Mapping[str, float | Mapping[str, Any]]) -> list[WeightedReward]:
    """The rewards in a recipe, in its order.

    Raises:
        TrainerUsageError: A reward isn't installed, a setting is wrong, or none has a weight.
    """
    for name in recipe:
        if ":" in name:
            raise TrainerUsageError(f"rewards.{name}: functions judge texts; expected the name of a reward of pictures")
    return load_rewards(recipe, group=ENTRY_POINT_GROUP)


def judge_pictures(rewards: Sequence[WeightedReward], requests: Sequence[PictureRequest]) -> JudgedPictures:
    """Let every reward judge all pictures.

    Raises:
        TrainerError: A reward failed, or returned something else than one finite number or None for each.
    """
    results: dict[str, Sequence[RewardResult]] = {}
    for weighted in rewards:
        reward = cast(PictureReward, weighted.reward)
        try:
            found = list(reward.judge(requests))
        except TrainerError:
            raise
        except Exception as error:
            raise TrainerError(f"rewards.{weighted.name}: failed ({type(error).__name__}: {error})") from error
        results[weighted.name] = check_results(weighted.name, found, num_expected=len(requests))
    return JudgedPictures(results=results, weights={weighted.name: weighted.weight for weighted in rewards})


def mean_of(values: Sequence[float | None]) -> float | None:
    """The mean of the values that there are; None without any."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
