"""Objectives along the reverse process: a step of sampling is an action, and its density makes it more or less likely.

They need steps with noise, and the latents before and after each. With r = p_new / p_old of a step's drawn latents,
averaged over samples and steps:

    clipped  -min(A r, A clip(r, 1 - c, 1 + c)):                   PPO (arXiv 1707.06347), eq. 7, for steps of flow
                                                                   matching in Flow-GRPO (2505.05470), DanceGRPO
                                                                   (2505.07818) and MixGRPO (2507.21802)
    guard    the same with log r' = d (log r + b), divided by D,   GRPO-Guard (arXiv 2510.22319): ratio normalisation
             b = |mean_new - mean_old|^2 / (2 d^2)                 and gradient reweighting
    dppo     -A r where not masked; masked where the exact         Flow-DPPO (arXiv 2606.11025): divergence mask
             divergence b exceeds c and the update moves on
             (A > 0 and r > 1, or A < 0 and r < 1)

d is the deviation of the step and D its decrease of the noise level. b takes away the drift by which the mean of log r
is below 0, and d makes steps of different noise comparable. What differs between the published methods besides, which
steps have noise and of what kind, is in `longrl_omni.generation.config.algorithms`.

Shape legend: B samples, L the shape of a sample's latents.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from longrl_omni.generation.config.algorithms import ReductionName
from longrl_omni.generation.sampling.trajectories import TakenStep
from longrl_omni.generation.sampling.transitions import Transition, mean_divergence

ReverseLossName = Literal["clipped", "guard", "dppo"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StepLoss:
    """The loss of one step for every sample.

    Attributes:
        losses: The losses.
        ratios: The ratio of the new density to the old one that they use.
        is_cut: Where the gradient has stopped.
    """

    losses: Tensor
    ratios: Tensor
    is_cut: Tensor


def reverse_loss(
    name: ReverseLossName,
    new: Transition,
    taken: TakenStep,
    advantages_B: Tensor,
    *,
    clip: float,
    reduction: ReductionName,
) -> StepLoss:
    """The loss of a step under the policy in training.

    Args:
        name: The objective.
        new: The distribution of the next latents now.
        taken: What was drawn.
        advantages_B: How much better each sample is than others.
        clip: How far the ratio may be from 1; for `dppo` the divergence that is allowed.
        reduction: Of log-densities and divergences over the elements of a sample.
    """
    log_ratios_B = new.log_density(taken.next_latents, reduction) - taken.old_log_density
    match name:
        case "clipped":
            return clipped_loss(log_ratios_B, advantages_B, clip=clip)
        case "guard":
            drift_B = mean_divergence(new.mean, taken.old_mean, new.deviation, reduction)
            guarded = clipped_loss((log_ratios_B + drift_B) * new.deviation, advantages_B, clip=clip)
            return StepLoss(losses=guarded.losses / new.decrease, ratios=guarded.ratios, is_cut=guarded.is_cut)
        case "dppo":
            divergence_B = mean_divergence(new.mean, taken.old_mean, new.deviation, reduction)
            return masked_loss(log_ratios_B, divergence_B, advantages_B, most_divergence=clip)


def clipped_loss(log_ratios_B: Tensor, advantages_B: Tensor, *, clip: float) -> StepLoss:
    """-min(A r, A clip(r, 1 - c, 1 + c)): PPO (arXiv 1707.06347), eq. 7."""
    ratios_B = log_ratios_B.exp()
    gains_B, clipped_B = ratios_B * advantages_B, ratios_B.clamp(1.0 - clip, 1.0 + clip) * advantages_B
    return StepLoss(losses=-torch.minimum(gains_B, clipped_B), ratios=ratios_B.detach(), is_cut=clipped_B < gains_B)


def masked_loss(
    log_ratios_B: Tensor, divergence_B: Tensor, advantages_B: Tensor, *, most_divergence: float
) -> StepLoss:
    """-A r, without a gradient where the policy is too far from the old one and would go further."""
    ratios_B = log_ratios_B.exp()
    goes_on_B = ((advantages_B > 0) & (ratios_B > 1)) | ((advantages_B < 0) & (ratios_B < 1))
    is_cut_B = (divergence_B.detach() > most_divergence) & goes_on_B
    losses_B = torch.where(is_cut_B, 0.0, -ratios_B * advantages_B)
    return StepLoss(losses=losses_B, ratios=ratios_B.detach(), is_cut=is_cut_B)
