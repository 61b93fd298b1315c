"""How much better each response is than others: pure functions of the rewards of a step.

Compared within the group of one question:

    grpo     A_i = (r_i - mean(r)) / (std(r) + 1e-6)     DeepSeekMath (arXiv 2402.03300), eq. 3 and section 4.1.2
    dr_grpo  A_i = r_i - mean(r)                         Understanding R1-Zero-Like Training (arXiv 2503.20783), eq. 2
    rloo     A_i = r_i - mean(r without r_i)             Back to Basics (arXiv 2402.14740), eq. 7

Compared within the whole step, where norm(x) = (x - mean(x)) / (std(x) + 1e-6) over all responses, or over all tokens,
so that a response counts as often as it has tokens:

    reinforce_plus_plus           norm over tokens of r_i                 REINFORCE++ (arXiv 2501.03262), section 3
    reinforce_plus_plus_baseline  norm over tokens of r_i - mean(group)   the same, with a group's mean as its baseline
    gdpo                          norm over responses of the sum over rewards k of weight_k * grpo(r_k)_i
                                                                          GDPO (arXiv 2601.05242), section 3

`std` is the sample standard deviation (divisor n - 1). A response whose reward is None was not judged: it has no
advantage, and the others are compared without it. A single judged response to a question has none to be compared with,
and counts as not judged, also where the whole step is compared. Each reward of `gdpo` is normalised among the responses
that it judged itself, whatever other rewards say. Independent of prompts and the source of rewards.

Shape legend: R tokens of a response.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from longrl_trainer.config.sections import AdvantageName

STANDARD_DEVIATION_FLOOR = 1e-6
# Rewards are short sums of weights; smaller differences than this are rounding.
EQUAL_REWARDS = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupRewards:
    """The rewards of the responses to one question, in their order.

    Attributes:
        totals: Weighted sum of every response's rewards; None where it was not judged.
        terms: Every reward by itself, without its weight; only `gdpo` uses them.
        weights: Their weights.
        lengths: Number of tokens of every response.
    """

    totals: Sequence[float | None]
    terms: Sequence[Sequence[float | None]] = ()
    weights: Sequence[float] = ()
    lengths: Sequence[int]


def step_advantages(groups: Sequence[GroupRewards], name: AdvantageName) -> list[list[float | None]]:
    """Advantage of every response of a step, by group; None where it was not judged."""
    groups = [omit_single(group) for group in groups]
    lengths = [group.lengths for group in groups]
    match name:
        case "grpo" | "dr_grpo" | "rloo":
            return [group_advantages(group.totals, name) for group in groups]
        case "reinforce_plus_plus":
            return standardise([group.totals for group in groups], lengths)
        case "reinforce_plus_plus_baseline":
            return standardise([group_advantages(group.totals, "dr_grpo") for group in groups], lengths)
        case "gdpo":
            return standardise([decoupled_advantages(group) for group in groups])


def penalised_advantages(
    groups: Sequence[GroupRewards], penalties: Sequence[Sequence[Tensor | None]], name: AdvantageName
) -> list[list[Tensor | None]]:
    """Advantages of a step when every token costs something, such as its divergence from the reference.

    A response's reward is lowered by the costs of all its tokens. With `reinforce_plus_plus` a token is judged by what
    follows it: its return is the reward minus the costs from it on, `r - sum_{u >= t} cost_u` (arXiv 2501.03262,
    section 3), and returns are normalised over all tokens of the step.

    Args:
        groups: The rewards.
        penalties: The costs of every response's tokens [R]; None where it was not judged.
        name: Any of the comparisons but `gdpo`, in which costs are no reward.

    Returns:
        For every response a tensor [R], or one number for all its tokens.
    """
    groups = [omit_single(group) for group in groups]
    if name == "reinforce_plus_plus":
        return _normalise_returns(groups, penalties)
    lowered = [
        replace(
            group,
            totals=[
                None if total is None or penalty_R is None else total - float(penalty_R.sum())
                for total, penalty_R in zip(group.totals, of_group, strict=True)
            ],
        )
        for group, of_group in zip(groups, penalties, strict=True)
    ]
    return [
        [None if advantage is None else torch.tensor(advantage, dtype=torch.float64) for advantage in of_group]
        for of_group in step_advantages(lowered, name)
    ]


def omit_single(group: GroupRewards) -> GroupRewards:
    """The group, without any judged response if there is only one."""
    num_judged = sum(total is not None for total in group.totals)
    return replace(group, totals=[None] * len(group.totals)) if num_judged == 1 else group


def group_advantages(rewards: Sequence[float | None], name: AdvantageName) -> list[float | None]:
    """Advantage of every response of one group by one of the first three names, None where the reward is None.

    Without spread, or with fewer than two judged responses, there is nothing to compare and every advantage is 0.
    """
    judged = [reward for reward in rewards if reward is not None]
    if not has_spread(rewards):
        return [None if reward is None else 0.0 for reward in rewards]
    mean = math.fsum(judged) / len(judged)
    match name:
        case "grpo":
            scale = 1.0 / (_sample_standard_deviation(judged, mean) + STANDARD_DEVIATION_FLOOR)
        case "dr_grpo":
            scale = 1.0
        case "rloo":
            # r_i - (sum(r) - r_i) / (G - 1) = (r_i - mean(r)) * G / (G - 1)
            scale = len(judged) / (len(judged) - 1)
        case _:
            raise ValueError(f"{name}: compares the responses of a whole step, see step_advantages")
    return [None if reward is None else (reward - mean) * scale for reward in rewards]


def decoupled_advantages(group: GroupRewards) -> list[float | None]:
    """Weighted sum of the `grpo` advantages of every reward by itself, None where the response was not judged."""
    by_term = [group_advantages(term, "grpo") for term in group.terms]
    return [
        None
        if total is None
        else math.fsum(weight * (term[index] or 0.0) for weight, term in zip(group.weights, by_term, strict=True))
        for index, total in enumerate(group.totals)
    ]


def standardise(
    values: Sequence[Sequence[float | None]], counts: Sequence[Sequence[int]] | None = None
) -> list[list[float | None]]:
    """Values of a step with mean 0 and standard deviation 1; None stays None, and without spread all become 0.

    Args:
        values: The values by group.
        counts: How often each counts; once if None.
    """
    counts = [[1] * len(group) for group in values] if counts is None else counts
    pairs = [
        (value, count)
        for of_values, of_counts in zip(values, counts, strict=True)
        for value, count in zip(of_values, of_counts, strict=True)
        if value is not None
    ]
    if not has_spread([value for value, _ in pairs]):
        return [[None if value is None else 0.0 for value in group] for group in values]
    total = sum(count for _, count in pairs)
    mean = math.fsum(value * count for value, count in pairs) / total
    variance = math.fsum(count * (value - mean) ** 2 for value, count in pairs) / (total - 1)
    scale = 1.0 / (math.sqrt(variance) + STANDARD_DEVIATION_FLOOR)
    return [[None if value is None else (value - mean) * scale for value in group] for group in values]


def has_spread(rewards: Sequence[float | None]) -> bool:
    """Whether at least two judged responses of the group have different rewards."""
    judged = [reward for reward in rewards if reward is not None]
    return len(judged) > 1 and max(judged) - min(judged) > EQUAL_REWARDS


def _normalise_returns(
    groups: Sequence[GroupRewards], penalties: Sequence[Sequence[Tensor | None]]
) -> list[list[Tensor | None]]:
    returns = [
        [
            None if total is None or penalty_R is None else total - penalty_R.double().flip(0).cumsum(0).flip(0)
            for total, penalty_R in zip(group.totals, of_group, strict=True)
        ]
        for group, of_group in zip(groups, penalties, strict=True)
    ]
    known = torch.cat([return_R for group in returns for return_R in group if return_R is not None])
    if len(known) < 2 or float(known.max() - known.min()) <= EQUAL_REWARDS:
        mean, scale = known.mean(), torch.zeros_like(known[0])
    else:
        mean, scale = known.mean(), 1.0 / (known.std() + STANDARD_DEVIATION_FLOOR)
    return [[None if return_R is None else (return_R - mean) * scale for return_R in group] for group in returns]


def _sample_standard_deviation(values: Sequence[float], mean: float) -> float:
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
