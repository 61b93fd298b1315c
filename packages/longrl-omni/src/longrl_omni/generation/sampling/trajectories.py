"""Drawing samples, and what is kept of the steps that will be trained.

Of a trained step the latents before and after it are kept in float32: a rounding to bfloat16 alone would change
probability ratios by more than a published clip allows. Steps with noise are the same for all samples of a training
step, so those of a group differ by chance alone. Every group has random numbers of its own.

Shape legend: B samples of a batch, L the shape of a sample's latents.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from longrl_omni.generation.config.algorithms import NoiseName, ReductionName
from longrl_omni.generation.policies.base import Encoding, GenerationPolicy
from longrl_omni.generation.sampling.transitions import Transition, step


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplerSettings:
    """How all samples of a training step are drawn.

    Attributes:
        levels: The noise levels, from noise to 0.
        noise: The kind of the steps with noise.
        noise_scale: How much noise they have.
        noisy_steps: Which steps have noise; the others follow the ODE.
        kept_steps: Which steps are kept.
        guidance: Classifier-free guidance; 1 for none.
        shares_initial_noise: Whether the samples of a group start from the same noise.
        reduction: Of log-densities over the elements of a sample.
    """

    levels: Sequence[float]
    noise: NoiseName = "ode"
    noise_scale: float = 0.0
    noisy_steps: Collection[int] = ()
    kept_steps: Collection[int] = ()
    guidance: float = 1.0
    shares_initial_noise: bool = False
    reduction: ReductionName = "mean"

    def transition(self, index: int, latents_BL: Tensor, velocity_BL: Tensor) -> Transition:
        """The distribution that a step draws from."""
        name = self.noise if index in self.noisy_steps else "ode"
        return step(
            latents_BL, velocity_BL, self.levels[index], self.levels[index + 1], name=name, noise=self.noise_scale
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TakenStep:
    """What was drawn in a step, and by which policy.

    Attributes:
        next_latents: The drawn latents.
        old_log_density: Their log-density under the policy that drew them, reduced as in the loss.
        old_mean: The mean of their distribution then.
    """

    next_latents: Tensor
    old_log_density: Tensor
    old_mean: Tensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class KeptStep:
    """A step that was taken.

    Attributes:
        index: Its place in the schedule.
        latents: The latents before it.
        taken: What was drawn; the log-density of a step without noise is 0.
    """

    index: int
    latents: Tensor
    taken: TakenStep


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SampledBatch:
    """Samples that went through the network together, groups one after the other.

    Attributes:
        prompts: The prompt of every sample.
        settings: How they were drawn.
        kept: The steps that were kept.
        clean: The samples.
    """

    prompts: Sequence[str]
    settings: SamplerSettings
    kept: Sequence[KeptStep]
    clean: Tensor


@torch.no_grad()
def draw_samples(
    policy: GenerationPolicy,
    prompts: Sequence[str],
    settings: SamplerSettings,
    *,
    group_size: int,
    seeds: Sequence[int],
) -> SampledBatch:
    """Draw one batch of samples.

    Args:
        policy: The model.
        prompts: The prompts of the groups.
        settings: How to draw.
        group_size: Samples per prompt.
        seeds: One per group.
    """
    sources = [torch.Generator().manual_seed(seed) for seed in seeds]

    def draw_noise(*, shared: bool = False) -> Tensor:
        """Standard normal numbers for all samples, from the generators of their groups."""
        num_drawn = 1 if shared else group_size
        drawn = [torch.randn(num_drawn, *policy.latent_shape, generator=source) for source in sources]
        return torch.cat([noise.expand(group_size, *policy.latent_shape) for noise in drawn]).to(policy.device)

    by_sample = [prompt for prompt in prompts for _ in range(group_size)]
    latents_BL = draw_noise(shared=settings.shares_initial_noise)
    encoding = policy.encode(by_sample)
    kept: list[KeptStep] = []
    for index, (level, _) in enumerate(pairwise(settings.levels)):
        velocity_BL = guided_velocity(policy, latents_BL, level, encoding, guidance=settings.guidance)
        transition = settings.transition(index, latents_BL, velocity_BL)
        next_BL = transition.draw(draw_noise()) if transition.deviation else transition.mean
        if index in settings.kept_steps:
            if transition.deviation:
                log_density_B = transition.log_density(next_BL, settings.reduction)
            else:
                log_density_B = latents_BL.new_zeros(len(by_sample))
            taken = TakenStep(next_latents=next_BL, old_log_density=log_density_B, old_mean=transition.mean)
            kept.append(KeptStep(index=index, latents=latents_BL, taken=taken))
        latents_BL = next_BL
    return SampledBatch(prompts=by_sample, settings=settings, kept=kept, clean=latents_BL)


def replay_step(policy: GenerationPolicy, batch: SampledBatch, kept: KeptStep) -> tuple[Transition, Tensor]:
    """The distribution of a step under the policy as it is now, and the velocity, in the same batch as when drawn."""
    settings = batch.settings
    encoding = policy.encode(batch.prompts)
    level = settings.levels[kept.index]
    velocity_BL = guided_velocity(policy, kept.latents, level, encoding, guidance=settings.guidance)
    return settings.transition(kept.index, kept.latents, velocity_BL), velocity_BL


def guided_velocity(
    policy: GenerationPolicy, latents_BL: Tensor, levels: float | Tensor, encoding: Encoding, *, guidance: float
) -> Tensor:
    """The velocity [B, L], with classifier-free guidance (arXiv 2207.12598, eq. 6) where it isn't 1 or the network's.

    Args:
        policy: The model.
        latents_BL: Where.
        levels: Their noise levels, one for all or [B].
        encoding: The encoded prompts.
        guidance: The scale w of v(empty) + w (v(prompt) - v(empty)).
    """
    num_samples = len(latents_BL)
    levels_B = torch.as_tensor(levels, dtype=latents_BL.dtype, device=latents_BL.device).expand(num_samples)
    velocity_BL = policy.predict(latents_BL, levels_B, encoding)
    if guidance == 1.0 or policy.has_guidance_input:
        return velocity_BL
    empty_BL = policy.predict(latents_BL, levels_B, policy.encode([""] * num_samples))
    return empty_BL + guidance * (velocity_BL - empty_BL)
