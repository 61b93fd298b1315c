"""When a run has gone wrong: a loss that is no number or far above the ones before, a reward that is lost.

What is refused here is refused before the update, so that the last checkpoint and the best one are from before it.
"""

import math
from collections.abc import Sequence
from statistics import fmean, median

from longrl_trainer.errors import TrainerError

LOSSES, LEAST_LOSSES = 20, 5
"""Steps whose median a loss is compared with, and how many of them there must be."""
REWARDS = 10
"""Steps whose mean reward is compared."""


def refuse_spike(losses: Sequence[float], *, max_rise: float) -> None:
    """Compare the loss of the last step with those before.

    Args:
        losses: The mean loss per token of every step so far, in nats.
        max_rise: How far it may lie above the median of the last steps.

    Raises:
        TrainerError: It is higher, or no finite number.
    """
    step, loss, before = len(losses), losses[-1], losses[-1 - LOSSES : -1]
    if not math.isfinite(loss):
        raise TrainerError(
            f"step {step} has the loss {loss}, and is not made; lower `learning_rate` or check the data of this step"
        )
    if len(before) >= LEAST_LOSSES and loss > median(before) + max_rise:
        raise TrainerError(
            f"step {step} has the loss {loss:.3g} after {median(before):.3g} (the median of {len(before)} steps), and "
            f"is not made; lower `learning_rate`, or raise `max_loss_rise` ({max_rise:g}) to go on"
        )


def refuse_collapse(rewards: Sequence[float | None], *, min_share: float) -> None:
    """Compare the mean reward of the last steps with the best before.

    Args:
        rewards: The mean reward of every step so far; None for a step in which nothing could be judged.
        min_share: The least share of the best mean; 0 allows everything.

    Raises:
        TrainerError: It is lower.
    """
    known = [reward for reward in rewards if reward is not None]
    if not min_share or len(known) < 2 * REWARDS:
        return
    means = [fmean(known[start : start + REWARDS]) for start in range(len(known) - REWARDS + 1)]
    now, best = means[-1], max(means[:-REWARDS])
    if best > 0 and now < min_share * best:
        raise TrainerError(
            f"step {len(rewards)}: the mean reward of the last {REWARDS} steps is {now:.3g}, and was {best:.3g} at its "
            "best; lower `learning_rate` and remove the newest checkpoints to continue from the best, or lower "
            f"`min_reward_share` ({min_share:g}) to go on"
        )
