"""How much better each response of a group is than the others: pure functions of the group's rewards.

    grpo     A_i = (r_i - mean(r)) / (std(r) + 1e-6)     DeepSeekMath (arXiv 2402.03300), eq. 3 and section 4.1.2
    dr_grpo  A_i = r_i - mean(r)                         Understanding R1-Zero-Like Training (arXiv 2503.20783), eq. 2
    rloo     A_i = r_i - mean(r without r_i)             Back to Basics (arXiv 2402.14740), eq. 7

`std` is the sample standard deviation (divisor G - 1). A response whose reward is None was not judged: it has no
advantage, and the others are compared without it. Independent of tokens, prompts and the source of rewards.
"""

import math
from collections.abc import Sequence

from longrl_trainer.config.sections import AdvantageName

STANDARD_DEVIATION_FLOOR = 1e-6
# Rewards are short sums of weights; smaller differences than this are rounding.
EQUAL_REWARDS = 1e-9


def group_advantages(rewards: Sequence[float | None], name: AdvantageName) -> list[float | None]:
    """Advantage of every response of one group, None where the reward is None.

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
    return [None if reward is None else (reward - mean) * scale for reward in rewards]


def has_spread(rewards: Sequence[float | None]) -> bool:
    """Whether at least two judged responses of the group have different rewards."""
    judged = [reward for reward in rewards if reward is not None]
    return len(judged) > 1 and max(judged) - min(judged) > EQUAL_REWARDS


def _sample_standard_deviation(values: Sequence[float], mean: float) -> float:
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
