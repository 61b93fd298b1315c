"""From names in a recipe to rewards, through the entry points of every installed package."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points

from longrl_trainer.errors import TrainerUsageError
from longrl_trainer.rewards.base import Reward, RewardResult
from longvideo_reason_data.records.record import QuestionRecord

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


def load_rewards(weights: Mapping[str, float]) -> list[WeightedReward]:
    """The rewards a recipe names, in its order."""
    known = known_rewards()
    loaded: list[WeightedReward] = []
    for name, weight in weights.items():
        if name not in known:
            names = ", ".join(sorted(known)) or "none"
            raise TrainerUsageError(f"rewards.{name}: there is no such reward; installed: {names}")
        try:
            reward: Reward = known[name].load()()
        except ImportError as error:
            raise TrainerUsageError(f"rewards.{name}: cannot be loaded from {known[name].value}: {error}") from error
        loaded.append(WeightedReward(name=name, reward=reward, weight=weight))
    if not any(weighted.weight for weighted in loaded):
        raise TrainerUsageError("rewards: at least one reward must have a weight other than 0")
    return loaded


def score_response(
    rewards: Sequence[WeightedReward], response_text: str, *, finished: bool, record: QuestionRecord
) -> ResponseScore:
    """Let every reward judge one response."""
    terms = {
        weighted.name: weighted.reward.score(response_text, finished=finished, record=record) for weighted in rewards
    }
    total = 0.0
    for weighted in rewards:
        value = terms[weighted.name].value
        if value is None:
            return ResponseScore(terms=terms, total=None)
        total += weighted.weight * value
    return ResponseScore(terms=terms, total=total)
