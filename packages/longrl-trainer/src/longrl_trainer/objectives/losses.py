"""The losses of the tokens of a response, to be minimised: pure functions of log-probabilities and advantages.

    clipped  PPO's surrogate; the ratio of every token is clipped
    gspo     the same with one ratio for the whole response
    cispo    the weight of a token is clipped, but no token loses its gradient
    sapo     a smooth gate in place of the clip

With the ratio w_t = exp(logprob_t - old logprob_t), at w = 1 all have the same gradient, that of -A logprob.

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
    """Shape [R]: where the clip was active."""


def clipped_loss(
    logprobs_R: Tensor, old_logprobs_R: Tensor, advantage: Tensor | float, *, clip_low: float, clip_high: float
) -> PolicyLoss:
    """PPO's clipped surrogate: `-min(w_t A, clip(w_t, 1 - clip_low, 1 + clip_high) A)`.

    DeepSeekMath (arXiv 2402.03300), eq. 3; the two separate bounds ("clip-higher") are DAPO's (arXiv 2503.14476),
    eq. 8. A token whose clip is active has no gradient.

    Args:
        logprobs_R: Of the policy, differentiable.
        old_logprobs_R: Of the policy that the responses were drawn from.
        advantage: Of the response, or of every token [R].
        clip_low: How far the ratio may fall below 1.
        clip_high: How far it may rise above 1.
    """
    return _clip(torch.exp(logprobs_R - old_logprobs_R), advantage, clip_low, clip_high)


def sequence_clipped_loss(
    logprobs_R: Tensor, old_logprobs_R: Tensor, advantage: Tensor | float, *, clip_low: float, clip_high: float
) -> PolicyLoss:
    """GSPO: the clipped surrogate with the geometric mean s of the ratios of all tokens of the response.

    `s_t = sg[s] exp(logprob_t - sg[logprob_t])` with `s = exp(mean_t(logprob_t - old logprob_t))`, in place of w_t.
    GSPO (arXiv 2507.18071), eq. 7 and, in this form by token, eq. 14, which for one advantage per response has the
    gradient of eq. 5. `logprobs_R` must be those of the whole response.
    """
    log_ratio = (logprobs_R - old_logprobs_R).mean().detach()
    return _clip(torch.exp(log_ratio + logprobs_R - logprobs_R.detach()), advantage, clip_low, clip_high)


def clipped_weight_loss(
    logprobs_R: Tensor, old_logprobs_R: Tensor, advantage: Tensor | float, *, clip_low: float, clip_high: float
) -> PolicyLoss:
    """CISPO: `-sg[clip(w_t, 1 - clip_low, 1 + clip_high)] A logprob_t`. MiniMax-M1 (arXiv 2506.13585), eq. 4 and 5.

    With `clip_low = 1` there is only the upper bound, as in the paper.
    """
    ratio_R = torch.exp(logprobs_R.detach() - old_logprobs_R)
    weight_R = ratio_R.clamp(1.0 - clip_low, 1.0 + clip_high)
    return PolicyLoss(losses=-weight_R * advantage * logprobs_R, is_clipped=weight_R != ratio_R)


def soft_gated_loss(
    logprobs_R: Tensor,
    old_logprobs_R: Tensor,
    advantage: Tensor | float,
    *,
    temperature_positive: float,
    temperature_negative: float,
) -> PolicyLoss:
    """SAPO: `-f(w_t) A` with the gate `f(w) = 4 / tau * sigmoid(tau (w - 1))`. SAPO (arXiv 2511.20347), eq. 5 and 6.

    tau is `temperature_positive` where the advantage is positive and `temperature_negative` elsewhere. Nothing is
    clipped: far from 1 the gradient fades.
    """
    ratio_R = torch.exp(logprobs_R - old_logprobs_R)
    is_positive = torch.as_tensor(advantage, device=logprobs_R.device) > 0
    # Two numbers alone would become float32.
    positive, negative = ratio_R.new_tensor(temperature_positive), ratio_R.new_tensor(temperature_negative)
    temperature = torch.where(is_positive, positive, negative)
    gate_R = torch.sigmoid(temperature * (ratio_R - 1.0)) * 4.0 / temperature
    return PolicyLoss(losses=-gate_R * advantage, is_clipped=torch.zeros_like(ratio_R, dtype=torch.bool))


def _clip(ratio_R: Tensor, advantage: Tensor | float, clip_low: float, clip_high: float) -> PolicyLoss:
    free_R = ratio_R * advantage
    clipped_R = ratio_R.clamp(1.0 - clip_low, 1.0 + clip_high) * advantage
    return PolicyLoss(losses=-torch.minimum(free_R, clipped_R), is_clipped=(clipped_R < free_R).detach())
