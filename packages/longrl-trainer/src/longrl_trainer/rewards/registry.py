"""From names in a recipe to rewards, through the entry points of every installed package."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, cast

from longrl_trainer.config.recipes import parse_config
from longrl_trainer.config.sections import RewardEntry, Section
from longrl_trainer.errors import TrainerError, TrainerUsageError
from longrl_trainer.rewards.base import OneByOne, Reward, RewardRequest, RewardResult

ENTRY_POINT_GROUP = "longrl_trainer.rewards"


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightedReward:
    """A reward, its name in the recipe and what it counts."""

    name: str
    reward: Reward
    weight: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseScore:
    """All judgements of one response and their weighted sum; no total when any of them is missing."""

    terms: dict[str, RewardResult]
    total: float | None


def known_rewards() -> dict[str, EntryPoint]:
    """Every installed reward by name."""
    return {entry_point.name: entry_point for entry_point in entry_points(group=ENTRY_POINT_GROUP)}


def load_rewards(entries: Mapping[str, RewardEntry]) -> list[WeightedReward]:
    """The rewards a recipe names, in its order.

    Args:
        entries: By name the weight, or a table with the weight and the reward's own settings.
    """
    known = known_rewards()
    loaded: list[WeightedReward] = []
    for name, entry in entries.items():
        if name not in known:
            names = ", ".join(sorted(known)) or "none"
            raise TrainerUsageError(f"rewards.{name}: there is no such reward; installed: {names}")
        weight, settings = _split_entry(name, entry)
        loaded.append(WeightedReward(name=name, reward=_create(name, known[name], settings), weight=weight))
    if not any(weighted.weight for weighted in loaded):
        raise TrainerUsageError("rewards: at least one reward must have a weight other than 0")
    return loaded


def judge_responses(rewards: Sequence[WeightedReward], requests: Sequence[RewardRequest]) -> list[ResponseScore]:
    """Let every reward judge all responses at once; one score per response, in their order.

    Raises:
        TrainerError: A reward failed, or gave something else than one result per response.
    """
    if not requests:
        return []
    judged = {weighted.name: _judge(weighted, requests) for weighted in rewards}
    return [
        _add_up(rewards, {name: results[place] for name, results in judged.items()}) for place in range(len(requests))
    ]


def _add_up(rewards: Sequence[WeightedReward], terms: dict[str, RewardResult]) -> ResponseScore:
    total = 0.0
    for weighted in rewards:
        value = terms[weighted.name].value
        if value is None:
            return ResponseScore(terms=terms, total=None)
        total += weighted.weight * value
    return ResponseScore(terms=terms, total=total)


def _judge(weighted: WeightedReward, requests: Sequence[RewardRequest]) -> Sequence[RewardResult]:
    """What one reward says, checked."""
    setting = f"rewards.{weighted.name}"
    try:
        results = list(weighted.reward.judge(requests))
    except Exception as error:
        reason = " ".join(str(error).split())
        raise TrainerError(f"{setting}: failed with {type(error).__name__}: {reason}; mend or remove it") from error
    if len(results) != len(requests):
        raise TrainerError(f"{setting}: gave {len(results)} results for {len(requests)} responses, expected as many")
    for result in cast(Sequence[object], results):
        if not isinstance(result, RewardResult):
            raise TrainerError(f"{setting}: gave a {type(result).__name__}, expected a RewardResult")
        if result.value is not None and not math.isfinite(result.value):
            raise TrainerError(f"{setting}: gave the value {result.value}, expected a finite number, or None for none")
    return results


def _split_entry(name: str, entry: RewardEntry) -> tuple[float, dict[str, Any]]:
    """The weight and the settings of an entry."""
    if not isinstance(entry, Mapping):
        return float(entry), {}
    settings = dict(entry)
    if "weight" not in settings:
        raise TrainerUsageError(f"rewards.{name}.weight: missing; this setting has no default")
    weight = settings.pop("weight")
    if isinstance(weight, bool) or not isinstance(weight, int | float):
        raise TrainerUsageError(f"rewards.{name}.weight: got {json.dumps(weight)}, expected: number")
    return float(weight), settings


def _create(name: str, entry_point: EntryPoint, settings: dict[str, Any]) -> Reward:
    """A reward with its settings."""
    try:
        factory: Any = entry_point.load()
    except (ImportError, AttributeError) as error:
        raise TrainerUsageError(f"rewards.{name}: cannot be loaded from {entry_point.value}: {error}") from error
    model: type[Section] | None = getattr(factory, "Settings", None)
    if model is not None:
        reward = factory(parse_config(settings, model, source=f"rewards.{name}"))
    elif settings:
        raise TrainerUsageError(f"rewards.{name}.{min(settings)}: unknown key; this reward has no settings but weight")
    else:
        reward = factory()
    if hasattr(reward, "judge"):
        return reward
    if hasattr(reward, "score"):
        return OneByOne(reward=reward)
    raise TrainerUsageError(
        f"rewards.{name}: {entry_point.value} has neither `judge` nor `score`, expected one of them"
    )
