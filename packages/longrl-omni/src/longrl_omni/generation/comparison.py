"""How much better each sample is than others of its prompt: the trainer's comparison within a group, and two choices.

With the rewards r of a group, A = (r - mean) / (deviation + 1e-6), where the deviation is that of the group, or of all
rewards of the step (Flow-GRPO's default). Several rewards are summed by weight first, or each is compared by itself and
the advantages are summed by weight (DanceGRPO, MixGRPO).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import stdev

from longrl_omni.generation.config.algorithms import MixingName, ScopeName
from longrl_trainer.objectives.advantages import STANDARD_DEVIATION_FLOOR, group_advantages, has_spread

Rewards = Sequence[float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightedTerm:
    """One reward of all samples of a step.

    Attributes:
        values: By sample, groups one after the other; None where it couldn't judge.
        weight: Its weight.
    """

    values: Rewards
    weight: float


def compare_samples(
    terms: Sequence[WeightedTerm], totals: Rewards, *, group_size: int, scope: ScopeName, mixing: MixingName
) -> list[float | None]:
    """The advantage of every sample of a step; None where it couldn't be judged, or nothing to compare it with.

    Args:
        terms: Every reward with a weight.
        totals: Their weighted sum by sample; None where one of them couldn't judge.
        group_size: Samples per prompt.
        scope: Of the standard deviation.
        mixing: Of the rewards.
    """
    compared = _compare(totals, group_size=group_size, scope=scope)
    if mixing == "sum" or len(terms) == 1:
        return compared
    judged = [total is not None for total in totals]
    each = [(term.weight, _compare(_only(term.values, judged), group_size=group_size, scope=scope)) for term in terms]
    return [
        None if known is None else sum(weight * (advantages[index] or 0.0) for weight, advantages in each)
        for index, known in enumerate(compared)
    ]


def _compare(rewards: Rewards, *, group_size: int, scope: ScopeName) -> list[float | None]:
    groups = [rewards[start : start + group_size] for start in range(0, len(rewards), group_size)]
    groups = [[None] * len(group) if sum(value is not None for value in group) < 2 else group for group in groups]
    if scope == "group":
        return [advantage for group in groups for advantage in group_advantages(group, "grpo")]
    known = [value for group in groups for value in group if value is not None]
    deviation = stdev(known) if has_spread(known) else 0.0
    return [
        None if advantage is None else advantage / (deviation + STANDARD_DEVIATION_FLOOR)
        for group in groups
        for advantage in group_advantages(group, "dr_grpo")
    ]


def _only(values: Rewards, chosen: Sequence[bool]) -> Rewards:
    return [value if is_chosen else None for value, is_chosen in zip(values, chosen, strict=True)]
