"""What shows that a model exploits its rewards, measured in every step.

The share of a reward in the advantages says what is really learned, whatever the weights say: a reward that is the
same for all responses to a question teaches nothing, and one that differs only where another one does teaches the same
again.
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from longrl_trainer.objectives.advantages import GroupRewards
from longrl_trainer.rewards.repetition import repeated_share
from longrl_trainer.rl.groups import RolloutGroup
from longvideo_reason_data.records.answers import ParsedAnswer


def monitor_metrics(groups: Sequence[RolloutGroup], parsed: Sequence[ParsedAnswer]) -> dict[str, Any]:
    """The metrics of a step.

    Args:
        groups: All groups that were judged.
        parsed: Their responses as read, in their order.

    Returns:
        For each reward its variance over the responses that it judged, and its share in the advantages; the entropy of
        the chosen letters in bits; shares of the responses: without reasoning, cut off, with a control token; and the
        mean share of repeated words.
    """
    scores = [score for group in groups for score in group.scores]
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    names = list(scores[0].terms)
    values = {name: [score.terms[name].value for score in scores] for name in names}
    return {
        "reward_variances": {name: variance([value for value in values[name] if value is not None]) for name in names},
        "advantage_shares": dict(
            zip(names, advantage_shares([(group.as_rewards(), group.advantages) for group in groups]), strict=True)
        ),
        "letter_entropy_bits": entropy_bits([answer.letter for answer in parsed if answer.letter is not None]),
        "empty_reasoning_rate": _mean([not (answer.reasoning or "").strip() for answer in parsed]),
        "truncated_rate": _mean([not rollout.finished for rollout in rollouts]),
        "control_token_rate": _mean([score.has_control_token for score in scores]),
        "repetition": _mean([repeated_share(rollout.text) for rollout in rollouts]),
    }


def advantage_shares(groups: Sequence[tuple[GroupRewards, Sequence[float | None]]]) -> list[float | None]:
    """The share of each reward in the advantages A of a step; together 1, and None if all advantages are 0.

    A reward r of weight w contributes c_i = w (r_i - mean(r)) / std(total) to response i, and has the share
    sum(A_i c_i) / sum(A_i C_i), with C the sum of c over the rewards: a decomposition of the covariance, in which what
    speaks against the advantages is negative.

    Args:
        groups: The rewards of each group, and the advantages of its responses.
    """
    num_terms = len(groups[0][0].weights) if groups else 0
    sums = [0.0] * num_terms
    for rewards, advantages in groups:
        judged = [place for place, advantage in enumerate(advantages) if advantage is not None]
        deviation = math.sqrt(variance([rewards.totals[place] or 0.0 for place in judged]) or 0.0)
        if not deviation:
            continue
        for term, (weight, values) in enumerate(zip(rewards.weights, rewards.terms, strict=True)):
            known = [values[place] or 0.0 for place in judged]
            mean = math.fsum(known) / len(known)
            sums[term] += math.fsum(
                (advantages[place] or 0.0) * weight * (value - mean) / deviation
                for place, value in zip(judged, known, strict=True)
            )
    total = math.fsum(sums)
    return [each / total if abs(total) > 1e-12 else None for each in sums]


def entropy_bits(choices: Sequence[str]) -> float | None:
    """Entropy of the distribution of choices: 2 if four letters are equally frequent, 0 if it is always one."""
    counts = Counter(choices).values()
    return math.fsum(count / len(choices) * math.log2(len(choices) / count) for count in counts) if choices else None


def variance(values: Sequence[float]) -> float | None:
    """Variance with divisor n; None without values."""
    if not values:
        return None
    mean = math.fsum(values) / len(values)
    return math.fsum((value - mean) ** 2 for value in values) / len(values)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
