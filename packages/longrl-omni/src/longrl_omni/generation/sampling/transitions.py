"""One step of sampling as a distribution: mean, standard deviation and log-density of the next latents.

A step goes from noise level s to s' < s, D = s - s', along the network's velocity v at the latents x. Two estimates
follow from v: the clean latents x0 = x - s v, and the noise e = x + (1 - s) v.

    ode    x' = x - D v                                           without noise; equal to the others at noise 0
    flow   Euler-Maruyama with g = a sqrt(s / (1 - s)):           Flow-GRPO (arXiv 2505.05470), eq. 9
           mean x - D (v + g^2 e / (2 s)), deviation g sqrt(D)
    dance  the same with g = a                                    DanceGRPO (arXiv 2505.07818)
    cps    mean (1 - s') x0 + s' cos(a pi / 2) e,                 Flow-CPS (arXiv 2509.05952)
           deviation s' sin(a pi / 2)
    ddim   mean (1 - s') x0 + sqrt(s'^2 - d^2) e, deviation       DDIM (arXiv 2010.02502), eqs. 12 and 16;
           d = a s' sqrt(1 - ((1 - s) s' / ((1 - s') s))^2)       a = 1 is DDPM

`ddim` is written in the coordinates of flow matching. A model of noise e at (alpha, sigma) with alpha^2 + sigma^2 = 1
has them after division by alpha + sigma: x / (alpha + sigma), s = sigma / (alpha + sigma). At s = 1 the coefficient of
`flow` is infinite, and s' takes the place of s in its denominator, so that the deviation of the first step is a. So it
is at 1 - 1e-6, where the published schedule of Wan begins and the deviation would be hundreds. The last step, s' = 0,
is always without noise: its density would be that of pictures with noise in them.

All is float32 at least, and knows neither networks nor schedulers. A log-density is summed over the elements of a
sample, or averaged, which takes the ratio of two densities to the power 1 / number of elements. That of `cps` has no
weights, as in its paper: -(x' - mean)^2.

Shape legend: B samples, L the shape of a sample's latents.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from longrl_omni.generation.config.algorithms import NoiseName, ReductionName

ALMOST_NOISE = 1.0 - 1e-5
"""Levels above this count as 1."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Transition:
    """The distribution of the next latents.

    Attributes:
        mean: Their mean.
        deviation: Their standard deviation; 0 for a step without noise.
        decrease: The decrease of the noise level, D.
        is_weighted: Whether the log-density has the weight and the constants of a Gaussian.
    """

    mean: Tensor
    deviation: float
    decrease: float
    is_weighted: bool = True

    def log_density(self, next_BL: Tensor, reduction: ReductionName) -> Tensor:
        """The log-density [B] of latents that have been drawn.

        Raises:
            ValueError: The step has no noise, and so no density.
        """
        if self.deviation == 0.0:
            raise ValueError("a step without noise has no density")
        squares_BL = (next_BL - self.mean).square()
        if not self.is_weighted:
            return reduce_elements(-squares_BL, reduction)
        constant = -math.log(self.deviation) - 0.5 * math.log(2.0 * math.pi)
        return reduce_elements(constant - squares_BL / (2.0 * self.deviation**2), reduction)

    def draw(self, noise_BL: Tensor) -> Tensor:
        """The next latents [B, L] for standard normal noise."""
        return self.mean + self.deviation * noise_BL if self.deviation else self.mean


def step(
    latents_BL: Tensor, velocity_BL: Tensor, level: float, next_level: float, *, name: NoiseName, noise: float
) -> Transition:
    """The distribution of the next latents.

    Args:
        latents_BL: The latents x, in float32 or float64.
        velocity_BL: The network's velocity there.
        level: Their noise level s, above `next_level`, at most 1.
        next_level: The level s' of the next latents, at least 0.
        name: The kind of step.
        noise: Its noise scale a; at most 1 for `cps` and `ddim`.

    Raises:
        ValueError: The levels or the noise are out of range, or the latents are too coarse.
    """
    if not 0.0 <= next_level < level <= 1.0:
        raise ValueError(f"levels {level} → {next_level}: expected 1 >= level > next level >= 0")
    if noise < 0.0 or (name in ("cps", "ddim") and noise > 1.0):
        raise ValueError(f"noise scale {noise}: expected at least 0, and at most 1 for cps and ddim")
    if latents_BL.dtype not in (torch.float32, torch.float64) or velocity_BL.dtype != latents_BL.dtype:
        raise ValueError(f"latents in {latents_BL.dtype}, velocity in {velocity_BL.dtype}: expected float32 or finer")
    decrease = level - next_level
    deviation = deviation_of(level, next_level, name=name, noise=noise)
    if deviation == 0.0:
        return Transition(mean=latents_BL - decrease * velocity_BL, deviation=0.0, decrease=decrease)
    estimated_noise_BL = latents_BL + (1.0 - level) * velocity_BL
    if name in ("flow", "dance"):
        pull = deviation**2 / (2.0 * level)  # g^2 D / (2 s)
        mean_BL = latents_BL - decrease * velocity_BL - pull * estimated_noise_BL
    else:
        clean_BL = latents_BL - level * velocity_BL
        kept = math.sqrt(max(0.0, next_level**2 - deviation**2))
        mean_BL = (1.0 - next_level) * clean_BL + kept * estimated_noise_BL
    return Transition(mean=mean_BL, deviation=deviation, decrease=decrease, is_weighted=name != "cps")


def deviation_of(level: float, next_level: float, *, name: NoiseName, noise: float) -> float:
    """The standard deviation of a step; 0 for the last one."""
    if next_level == 0.0 or noise == 0.0:
        return 0.0
    decrease = level - next_level
    match name:
        case "ode":
            return 0.0
        case "flow":
            # At level 1 the denominator is that of the next level.
            return noise * math.sqrt(decrease * level / (1.0 - (next_level if level > ALMOST_NOISE else level)))
        case "dance":
            return noise * math.sqrt(decrease)
        case "cps":
            return next_level * math.sin(noise * math.pi / 2.0)
        case "ddim":
            share = (1.0 - level) * next_level / ((1.0 - next_level) * level)
            return noise * next_level * math.sqrt(1.0 - share**2)


def mean_divergence(mean_BL: Tensor, other_BL: Tensor, deviation: float, reduction: ReductionName) -> Tensor:
    """The Kullback-Leibler divergence [B] of two Gaussians of one deviation: |mean - other|^2 / (2 deviation^2)."""
    return reduce_elements((mean_BL - other_BL).square() / (2.0 * deviation**2), reduction)


def reduce_elements(values_BL: Tensor, reduction: ReductionName) -> Tensor:
    """The mean or the sum [B] over the elements of each sample, whatever their shape."""
    values_BN = values_BL.flatten(1)
    return values_BN.mean(dim=1) if reduction == "mean" else values_BN.sum(dim=1)
