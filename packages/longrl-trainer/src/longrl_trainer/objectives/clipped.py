"""PPO's clipped surrogate, with one advantage per response.

Shape legend: R tokens of a response.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyLoss:
    """The losses of the tokens of one response."""

    losses: Tensor
    """Loss of every token, to be minimised, shape [R]."""
    is_clipped: Tensor
    """Shape [R]: where the clip was active, so that the token has no gradient."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClippedLoss:
    """PPO's clipped surrogate.

    With the ratio w = exp(logprob - old logprob): `-min(w A, clip(w, 1 - clip_low, 1 + clip_high) A)`. DeepSeekMath
    (arXiv 2402.03300), eq. 3; the two separate bounds ("clip-higher") are DAPO's (arXiv 2503.14476), eq. 8.

    Attributes:
        clip_low: How far the ratio may fall below 1 before the gradient stops.
        clip_high: How far it may rise above 1.
    """

    clip_low: float
    clip_high: float

    def __call__(self, logprobs_R: Tensor, old_logprobs_R: Tensor, advantage: float) -> PolicyLoss:
        """The losses [R] of one response."""
        ratio_R = torch.exp(logprobs_R - old_logprobs_R)
        free_R = ratio_R * advantage
        clipped_R = ratio_R.clamp(1.0 - self.clip_low, 1.0 + self.clip_high) * advantage
        return PolicyLoss(losses=-torch.minimum(free_R, clipped_R), is_clipped=(clipped_R < free_R).detach())
