"""PPO's clipped surrogate, with one advantage per response.

Shape legend: R tokens of a response.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from longrl_trainer.objectives.base import PolicyLoss


@dataclass(frozen=True, slots=True, kw_only=True)
class ClippedLoss:
    """`clipped_policy_loss` with its bounds."""

    clip_low: float
    clip_high: float

    def __call__(self, logprobs_R: Tensor, old_logprobs_R: Tensor, advantage: float) -> PolicyLoss:
        """See `ResponseLoss`."""
        return clipped_policy_loss(
            logprobs_R, old_logprobs_R, advantage, clip_low=self.clip_low, clip_high=self.clip_high
        )


def clipped_policy_loss(
    logprobs_R: Tensor, old_logprobs_R: Tensor, advantage: float, *, clip_low: float, clip_high: float
) -> PolicyLoss:
    """PPO's clipped surrogate with one advantage for the whole response.

    With the ratio w = exp(logprob - old logprob): `-min(w A, clip(w, 1 - clip_low, 1 + clip_high) A)`. DeepSeekMath
    (arXiv 2402.03300), eq. 3; the two separate bounds ("clip-higher") are DAPO's (arXiv 2503.14476), eq. 8.
    """
    ratio_R = torch.exp(logprobs_R - old_logprobs_R)
    free_R = ratio_R * advantage
    clipped_R = ratio_R.clamp(1.0 - clip_low, 1.0 + clip_high) * advantage
    return PolicyLoss(losses=-torch.minimum(free_R, clipped_R), is_clipped=(clipped_R < free_R).detach())
