"""From names in a recipe to rewards, through the entry points of every installed package."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from pydantic import BaseModel, ValidationError

from longrl_trainer.errors import TrainerError, TrainerUsageError
from longrl_trainer.rewards.base import BatchReward, Reward, RewardRequest, RewardResult

ENTRY_POINT_GROUP = "longrl_trainer.rewards"


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightedReward:
    """A reward, its name in the recipe and its weight."""

    name: str
    reward: Reward | BatchReward
    weight: float

    def judge(self, requests: Sequence[RewardRequest]) -> list[RewardResult]:
        """Judge responses in their order.

        Raises:
            TrainerError: The reward failed, or didn't return one result for each.
        """
        try:
            if isinstance(self.reward, BatchReward):
                results = list(self.reward.judge(requests))
            else:
                score = self.reward.score
                results = [score(each.response_text, finished=each.finished, record=each.record) for each in requests]
        except TrainerError:
            raise
        except Exception as error:
            raise TrainerError(f"rewards.{self.name}: failed ({type(error).__name__}: {error})") from error
        if len(results) != len(requests):
            raise TrainerError(f"rewards.{self.name}: returned {len(results)} results for {len(requests)} responses")
        for result in results:
            if result.value is not None and not math.isfinite(result.value):
                raise TrainerError(f"rewards.{self.name}: returned {result.value}, expected a finite number or None")
        return results


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseScore:
    """All judgements of one response and their weighted sum; no total when any that has a weight is missing."""

    terms: dict[str, RewardResult]
    total: float | None


def known_rewards() -> dict[str, EntryPoint]:
    """Every installed reward by name."""
    return {entry_point.name: entry_point for entry_point in entry_points(group=ENTRY_POINT_GROUP)}


def load_rewards(recipe: Mapping[str, float | Mapping[str, Any]]) -> list[WeightedReward]:
    """The rewards in a recipe, in its order.

    Args:
        recipe: The weight, or the weight and the reward's own settings, by name.

    Raises:
        TrainerUsageError: A reward isn't installed, a setting is wrong, or nothing has a weight.
    """
    known = known_rewards()
    loaded: list[WeightedReward] = []
    for name, entry in recipe.items():
        if name not in known:
            names = ", ".join(sorted(known)) or "none"
            raise TrainerUsageError(f"rewards.{name}: there is no such reward; installed: {names}")
        settings = dict(entry) if isinstance(entry, Mapping) else {"weight": entry}
        weight = settings.pop("weight")
        loaded.append(WeightedReward(name=name, reward=_create(name, known[name], settings), weight=weight))
    if not any(weighted.weight for weighted in loaded):
        raise TrainerUsageError("rewards: at least one reward must have a weight other than 0")
    return loaded


def score_responses(rewards: Sequence[WeightedReward], requests: Sequence[RewardRequest]) -> list[ResponseScore]:
    """Let every reward judge all responses.

    Raises:
        TrainerError: A reward failed.
    """
    judged = {weighted.name: weighted.judge(requests) for weighted in rewards}
    scores: list[ResponseScore] = []
    for index in range(len(requests)):
        terms = {name: results[index] for name, results in judged.items()}
        scores.append(ResponseScore(terms=terms, total=_total(rewards, terms)))
    return scores


def _total(rewards: Sequence[WeightedReward], terms: Mapping[str, RewardResult]) -> float | None:
    total = 0.0
    for weighted in rewards:
        value = terms[weighted.name].value
        if not weighted.weight:
            continue
        if value is None:
            return None
        total += weighted.weight * value
    return total


def _create(name: str, entry_point: EntryPoint, settings: Mapping[str, Any]) -> Reward | BatchReward:
    """A reward with its settings."""
    try:
        reward_class: Any = entry_point.load()
    except ImportError as error:
        raise TrainerUsageError(f"rewards.{name}: cannot be loaded from {entry_point.value}: {error}") from error
    model: type[BaseModel] | None = getattr(reward_class, "Settings", None)
    if model is None:
        if settings:
            raise TrainerUsageError(f"rewards.{name}.{next(iter(settings))}: this reward has no settings but weight")
        return reward_class()
    try:
        return reward_class(model.model_validate(settings, extra="forbid"))
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(map(str, ("rewards", name, *problem["loc"])))
        known = ", ".join(["weight", *model.model_fields])
        raise TrainerUsageError(f"{key}: {problem['msg']}; valid here: {known}") from None
