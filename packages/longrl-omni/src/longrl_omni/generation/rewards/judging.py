"""Rewards of pictures and clips from the names in a recipe, and what they say about the samples of a step."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, cast

from longrl_omni.generation.rewards.base import (
    ENTRY_POINT_GROUP,
    GenerationReward,
    PictureRequest,
    SampleRequest,
    kinds_judged_by,
    name_kind,
)
from longrl_trainer.errors import TrainerError, TrainerUsageError
from longrl_trainer.rewards.base import RewardResult
from longrl_trainer.rewards.registry import WeightedReward, check_results, load_rewards


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedSamples:
    """What the rewards say about some samples, in their order.

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
        """The weighted sum for every sample; None where a reward with a weight couldn't judge."""
        terms = [(self.weights[name], self.values(name)) for name in self.results if self.weights[name]]
        return [
            None
            if None in of_one
            else sum(weight * cast(float, value) for (weight, _), value in zip(terms, of_one, strict=True))
            for of_one in zip(*(values for _, values in terms), strict=True)
        ]

    def means(self) -> dict[str, float | None]:
        """The mean of every reward over the samples that it could judge."""
        return {name: mean_of(self.values(name)) for name in self.results}


def load_generation_rewards(recipe: Mapping[str, float | Mapping[str, Any]]) -> list[WeightedReward]:
    """The rewards in a recipe, in its order.

    Raises:
        TrainerUsageError: A reward isn't installed, a setting is wrong, or none has a weight.
    """
    for name in recipe:
        if ":" in name:
            raise TrainerUsageError(
                f"rewards.{name}: functions judge texts; expected the name of a reward of pictures or clips"
            )
    return load_rewards(recipe, group=ENTRY_POINT_GROUP)


def refuse_other_kinds(rewards: Sequence[WeightedReward], kind: type[SampleRequest]) -> None:
    """Refuse rewards that can't judge what a model generates, which is known before the first sample.

    Raises:
        TrainerUsageError: There is such a reward.
    """
    for weighted in rewards:
        judged = kinds_judged_by(weighted.reward)
        if kind not in judged:
            fitting = sorted(
                entry.name for entry in entry_points(group=ENTRY_POINT_GROUP) if kind in kinds_judged_by(entry.load())
            )
            raise TrainerUsageError(
                f"rewards.{weighted.name}: judges {' and '.join(map(name_kind, judged))}, and the model generates "
                f"{name_kind(kind)}; expected one of {', '.join(fitting)}"
            )


def judge_samples(rewards: Sequence[WeightedReward], requests: Sequence[SampleRequest]) -> JudgedSamples:
    """Let every reward judge all samples.

    Raises:
        TrainerUsageError: A reward doesn't judge such samples.
        TrainerError: A reward failed, or returned something else than one finite number or None for each.
    """
    refuse_other_kinds(rewards, type(requests[0]) if requests else PictureRequest)
    results: dict[str, Sequence[RewardResult]] = {}
    for weighted in rewards:
        reward = cast(GenerationReward, weighted.reward)
        try:
            found = list(reward.judge(requests))
        except TrainerError:
            raise
        except Exception as error:
            raise TrainerError(f"rewards.{weighted.name}: failed ({type(error).__name__}: {error})") from error
        results[weighted.name] = check_results(weighted.name, found, num_expected=len(requests))
    return JudgedSamples(results=results, weights={weighted.name: weighted.weight for weighted in rewards})


def mean_of(values: Sequence[float | None]) -> float | None:
    """The mean of the values that there are; None without any."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
