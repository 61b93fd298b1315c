"""Objectives along the forward process: clean samples are noised again, and the velocity there is corrected.

They need clean samples alone, from any sampler. With clean latents x0, noise e and level s, x = (1 - s) x0 + s e has
the target velocity u = e - x0; v is the velocity of the policy in training, v_old that of the one that is followed
slowly or drew the samples, v_ref that of the start, and A the advantage:

    nft   q E(v_old + b (v - v_old)) + (1 - q) E(v_old - b (v - v_old))    DiffusionNFT (arXiv 2509.16117)
          with q = 1/2 + clip(A / c, -1, 1) / 2, E(v) = |x0(v) - x0|^2 / m(v), x0(v) = x - s v, and m(v) the mean of
          |x0(v) - x0| over the sample's elements, which has no gradient
    awm   -min(A r, A clip(r, 1 - c, 1 + c)), log r = |v_old - u|^2 - |v - u|^2    AWM (arXiv 2509.25050)
    dgpo  softplus(S), S = b / G sum over the group of A (|v - u|^2 - |v_ref - u|^2)    DGPO (arXiv 2510.08425)

All squares are means over the elements of a sample. In `dgpo` a group has one noise and one level. Its gradient,
sigmoid(S) b A / G times that of |v - u|^2, is that of the published weighted loss.

Shape legend: B samples, L the shape of a sample's latents, N groups, G samples of a group.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from longrl_omni.generation.objectives.reverse import StepLoss, clipped_loss
from longrl_omni.generation.sampling.transitions import reduce_elements

LEAST_ERROR = 1e-5
"""The least m(v), so that a perfect prediction isn't divided by 0."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NoisedSamples:
    """Samples that were noised again.

    Attributes:
        clean: The samples.
        noise: Their noise.
        levels: Their noise levels.
    """

    clean: Tensor
    noise: Tensor
    levels: Tensor

    @property
    def latents(self) -> Tensor:
        """The noised latents."""
        levels_B1 = spread(self.levels, self.clean)
        return (1.0 - levels_B1) * self.clean + levels_B1 * self.noise

    @property
    def target(self) -> Tensor:
        """The velocity that leads back to the samples."""
        return self.noise - self.clean

    def error_of(self, velocity_BL: Tensor) -> Tensor:
        """The mean squared error [B] of a velocity."""
        return reduce_elements((velocity_BL - self.target).square(), "mean")


def nft_loss(
    noised: NoisedSamples,
    velocity_BL: Tensor,
    old_velocity_BL: Tensor,
    advantages_B: Tensor,
    *,
    strength: float,
    most_advantage: float,
) -> StepLoss:
    """DiffusionNFT: samples that are better than others attract the velocity, and worse ones repel it.

    Args:
        noised: The samples.
        velocity_BL: The velocity in training.
        old_velocity_BL: That of the policy which is followed slowly.
        advantages_B: How much better each sample is than others.
        strength: b; the smaller, the further the policy has to go for the same gain.
        most_advantage: c; larger advantages count as this.
    """
    preference_B = 0.5 + 0.5 * (advantages_B / most_advantage).clamp(-1.0, 1.0)
    change_BL = strength * (velocity_BL - old_velocity_BL)
    levels_B1 = spread(noised.levels, velocity_BL)

    def weighted_error(branch_BL: Tensor) -> Tensor:
        clean_error_BL = levels_B1 * (branch_BL - noised.target)  # x0(v) - x0, but for the sign
        scale_B = reduce_elements(clean_error_BL.detach().abs(), "mean").clamp(min=LEAST_ERROR)
        return reduce_elements(clean_error_BL.square(), "mean") / scale_B

    losses_B = preference_B * weighted_error(old_velocity_BL + change_BL)
    losses_B = losses_B + (1.0 - preference_B) * weighted_error(old_velocity_BL - change_BL)
    return _never_cut(losses_B)


def awm_loss(
    noised: NoisedSamples, velocity_BL: Tensor, old_velocity_BL: Tensor, advantages_B: Tensor, *, clip: float
) -> StepLoss:
    """Advantage-weighted matching: the loss of pretraining, by advantage, with the clip of a policy gradient."""
    log_ratios_B = noised.error_of(old_velocity_BL) - noised.error_of(velocity_BL)
    return clipped_loss(log_ratios_B, advantages_B, clip=clip)


def dgpo_loss(
    noised: NoisedSamples,
    velocity_BL: Tensor,
    reference_velocity_BL: Tensor,
    advantages_B: Tensor,
    *,
    group_size: int,
    strength: float,
) -> StepLoss:
    """Direct group preference: the better part of a group should be fitted better than by the reference.

    Args:
        noised: The samples, groups one after the other, each with one noise and one level.
        velocity_BL: The velocity in training.
        reference_velocity_BL: That of the start.
        advantages_B: How much better each sample is than others; 0 for one that doesn't count.
        group_size: G.
        strength: b.
    """
    gains_B = advantages_B * (noised.error_of(velocity_BL) - noised.error_of(reference_velocity_BL))
    preferences_N = strength / group_size * gains_B.view(-1, group_size).sum(dim=1)
    return _never_cut(functional.softplus(preferences_N).repeat_interleave(group_size))


def spread(values_B: Tensor, like_BL: Tensor) -> Tensor:
    """One number per sample, with as many axes as the latents."""
    return values_B.view(-1, *[1] * (like_BL.dim() - 1))


def _never_cut(losses_B: Tensor) -> StepLoss:
    return StepLoss(
        losses=losses_B,
        ratios=torch.ones_like(losses_B).detach(),
        is_cut=torch.zeros_like(losses_B, dtype=torch.bool),
    )
