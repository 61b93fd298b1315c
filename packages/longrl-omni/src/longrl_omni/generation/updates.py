"""From judged samples to new weights: the update of one step, along the reverse or the forward process.

Before the first change of a weight the policy is asked again what the sampler asked it, in the same batches. If it
answers differently, beyond rounding, nothing that follows is right (another seed of dropout, other prompt encodings,
weights that went astray), and the run stops.

Shape legend: B samples of a batch, L the shape of a sample's latents.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor

from longrl_omni.generation.config.recipes import GenerateGrpoConfig
from longrl_omni.generation.objectives.forward import NoisedSamples, awm_loss, dgpo_loss, nft_loss
from longrl_omni.generation.objectives.reverse import ReverseLossName, StepLoss, reverse_loss
from longrl_omni.generation.policies.base import GenerationPolicy
from longrl_omni.generation.policies.trained_weights import TrainedWeights
from longrl_omni.generation.sampling.trajectories import KeptStep, SampledBatch, guided_velocity, replay_step
from longrl_omni.generation.sampling.transitions import Transition, mean_divergence, reduce_elements
from longrl_trainer.errors import TrainerError
from longrl_trainer.seeds import derive_seed
from longrl_trainer.training.optimizer import TrainingOptimizer


@dataclass(slots=True, kw_only=True)
class UpdateStatistics:
    """Numbers of one update, for the journal."""

    losses: list[float] = field(default_factory=list[float])
    divergences: list[float] = field(default_factory=list[float])
    cut_shares: list[float] = field(default_factory=list[float])
    mean_log_ratios: list[float] = field(default_factory=list[float])
    sum_log_ratios: list[float] = field(default_factory=list[float])
    ratio_error: float = 0.0
    """Mean absolute difference between sampler and policy before the first change; see `max_ratio_error`."""
    gradient_norm: float = 0.0

    def metrics(self) -> dict[str, float]:
        """By name."""
        lists = {
            "loss": self.losses,
            "divergence": self.divergences,
            "cut_share": self.cut_shares,
            "log_ratio_mean": self.mean_log_ratios,
            "log_ratio_sum": self.sum_log_ratios,
        }
        means = {name: sum(values) / len(values) for name, values in lists.items() if values}
        return means | {"ratio_error": self.ratio_error, "gradient_norm": self.gradient_norm}


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationUpdate:
    """Updates the policy of a run, in the same way in every step.

    Attributes:
        policy: The model in training.
        weights: Its trained weights and their copies.
        optimizer: Their optimizer.
        config: The recipe.
    """

    policy: GenerationPolicy
    weights: TrainedWeights
    optimizer: TrainingOptimizer
    config: GenerateGrpoConfig

    def run(
        self,
        batches: Sequence[SampledBatch],
        advantages: Sequence[float | None],
        trained_steps: Sequence[int],
        *,
        step: int,
        learning_rate: float,
    ) -> UpdateStatistics:
        """One or several optimizer steps on the same samples.

        Args:
            batches: All samples of the step.
            advantages: Their advantages, in order; None for one that isn't trained on.
            trained_steps: The steps of sampling that a reverse objective trains.
            step: Steps of training that are done.
            learning_rate: The learning rate.

        Raises:
            TrainerError: Sampler and policy disagree, or no sample could be judged.
        """
        num_judged = sum(advantage is not None for advantage in advantages)
        if not num_judged:
            raise TrainerError("no two samples of a prompt could be judged in this step; check the rewards")
        of_batches = _divide(advantages, batches, limit=self.config.most_advantage)
        statistics = UpdateStatistics()
        old_velocities: dict[tuple[int, int], Tensor] = {}
        for update in range(self.config.updates_per_batch):
            if not self.config.is_reverse and update == 0:
                self._check(statistics, self._measure_forward_error(batches[0]))
            for place, (batch, (advantages_B, weights_B)) in enumerate(zip(batches, of_batches, strict=True)):
                weights_B = weights_B / num_judged
                if self.config.is_reverse:
                    kept = [one for one in batch.kept if one.index in trained_steps]
                    for one in kept:
                        loss_B = self._lose_reverse(batch, one, advantages_B, statistics, is_first=update == 0)
                        _backward(loss_B, weights_B / len(kept), statistics)
                    continue
                noised = noise_again(batch, self.config, step=step, place=place)
                for level, samples in enumerate(noised):
                    old = old_velocities.get((place, level))
                    loss_B, velocity_BL = self._lose_forward(batch, samples, advantages_B, statistics, old)
                    old_velocities.setdefault((place, level), velocity_BL)
                    _backward(loss_B, weights_B / len(noised), statistics)
            if self.config.is_reverse and update == 0:
                self._check(statistics, statistics.ratio_error)
            statistics.gradient_norm = self.optimizer.step(learning_rate)
        self.weights.follow(decay=min(self.config.average_growth * step, self.config.average_decay))
        self.weights.smooth(decay=min(step / (step + 10), self.config.final_average_decay))
        return statistics

    def _lose_reverse(
        self, batch: SampledBatch, kept: KeptStep, advantages_B: Tensor, statistics: UpdateStatistics, *, is_first: bool
    ) -> Tensor:
        """The losses [B] of a step of sampling."""
        parts = self.config.parts
        anchor: tuple[Transition, Tensor] | None = None
        if parts.kl_coefficient:
            with self._anchor():
                anchor = replay_step(self.policy, batch, kept)
        new, velocity_BL = replay_step(self.policy, batch, kept)
        found: StepLoss = reverse_loss(
            cast(ReverseLossName, parts.loss),
            new,
            kept.taken,
            advantages_B,
            clip=parts.clip,
            reduction=parts.reduction,
        )
        num_elements = kept.latents[0].numel()
        log_ratios_B = (new.log_density(kept.taken.next_latents, parts.reduction) - kept.taken.old_log_density).detach()
        mean_B = log_ratios_B if parts.reduction == "mean" else log_ratios_B / num_elements
        statistics.mean_log_ratios.append(float(mean_B.mean()))
        statistics.sum_log_ratios.append(float(mean_B.mean()) * num_elements)
        statistics.cut_shares.append(float(found.is_cut.float().mean()))
        if is_first:
            statistics.ratio_error = max(statistics.ratio_error, float(mean_B.abs().mean()))
        if anchor is None:
            return found.losses
        transition, anchor_BL = anchor
        if parts.kl_form == "velocity":
            divergence_B = reduce_elements((velocity_BL - anchor_BL).square(), "mean")
        else:
            divergence_B = mean_divergence(new.mean, transition.mean, new.deviation, parts.reduction)
        statistics.divergences.append(float(divergence_B.detach().mean()))
        return found.losses + parts.kl_coefficient * divergence_B

    def _lose_forward(
        self,
        batch: SampledBatch,
        noised: NoisedSamples,
        advantages_B: Tensor,
        statistics: UpdateStatistics,
        old_BL: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """The losses [B] of noised samples, and the velocity without its gradient.

        Args:
            batch: The samples.
            noised: They with noise.
            advantages_B: Their advantages.
            statistics: Of the update.
            old_BL: The velocity of the policy before the first update; None if that is now.
        """
        parts, config = self.config.parts, self.config
        ask = self._velocity_of(batch, noised)
        anchor_BL = start_BL = average_BL = None
        if parts.loss == "dgpo" or (parts.kl_coefficient and parts.kl_anchor == "start"):
            with self.weights.as_at_start():
                start_BL = ask()
        if config.needs_average:
            with self.weights.as_average():
                average_BL = ask()
        velocity_BL = ask()
        own_BL = velocity_BL.detach()
        match parts.loss:
            case "nft":
                assert average_BL is not None
                found = nft_loss(
                    noised,
                    velocity_BL,
                    average_BL,
                    advantages_B,
                    strength=parts.strength,
                    most_advantage=config.most_advantage,
                )
            case "awm":
                found = awm_loss(
                    noised, velocity_BL, own_BL if old_BL is None else old_BL, advantages_B, clip=parts.clip
                )
            case _:
                assert start_BL is not None
                found = dgpo_loss(
                    noised,
                    velocity_BL,
                    start_BL,
                    advantages_B,
                    group_size=config.group_size,
                    strength=parts.strength,
                )
        statistics.cut_shares.append(float(found.is_cut.float().mean()))
        if not parts.kl_coefficient:
            return found.losses, own_BL
        anchor_BL = start_BL if parts.kl_anchor == "start" else average_BL
        assert anchor_BL is not None
        divergence_B = reduce_elements((velocity_BL - anchor_BL).square(), "mean")
        statistics.divergences.append(float(divergence_B.detach().mean()))
        return found.losses + parts.kl_coefficient * divergence_B, own_BL

    def _velocity_of(self, batch: SampledBatch, noised: NoisedSamples) -> Callable[[], Tensor]:
        """Asks the network, as it is then, for the velocity at noised samples."""
        sampling = self.config.sampling
        guidance = sampling.guidance if sampling.guidance_in_training else 1.0
        encoding = self.policy.encode(batch.prompts)
        latents_BL = noised.latents
        return lambda: guided_velocity(self.policy, latents_BL, noised.levels, encoding, guidance=guidance)

    @torch.no_grad()
    def _measure_forward_error(self, batch: SampledBatch) -> float:
        """How far the velocity of the policy that drew samples is from what it was when it drew them."""
        (kept,) = batch.kept
        if self.config.parts.loss == "nft":
            with self.weights.as_average():
                new, _ = replay_step(self.policy, batch, kept)
        else:
            new, _ = replay_step(self.policy, batch, kept)
        return float((new.mean - kept.taken.next_latents).abs().mean()) / new.decrease

    def _check(self, statistics: UpdateStatistics, error: float) -> None:
        statistics.ratio_error = error
        if not error <= self.config.max_ratio_error:
            raise TrainerError(
                f"sampler and policy disagree before the first update: {error:.2e}, `max_ratio_error` allows "
                f"{self.config.max_ratio_error:.2e}; weights, prompt encodings or batches differ from those of sampling"
            )

    def _anchor(self) -> AbstractContextManager[None]:
        return self.weights.as_at_start() if self.config.parts.kl_anchor == "start" else self.weights.as_average()


def noise_again(batch: SampledBatch, config: GenerateGrpoConfig, *, step: int, place: int) -> list[NoisedSamples]:
    """Noise the samples of a batch to several levels each, the same in each update of a step.

    Positions in the sampler's schedule are drawn evenly, one from each of as many equal parts as there are levels, and
    so levels are as dense as the sampler's. The samples of a group have one level; for `dgpo` also one noise.
    """
    source = torch.Generator().manual_seed(derive_seed(config.seed, "forward noise", step, place))
    clean_BL, levels = batch.clean, torch.tensor(batch.settings.levels)
    num_groups, num_levels = len(clean_BL) // config.group_size, config.noise_levels_per_sample
    drawn: list[NoisedSamples] = []
    for part in range(num_levels):
        positions_N = (part + torch.rand(num_groups, generator=source)) / num_levels * (len(levels) - 1)
        below_N = positions_N.long().clamp(max=len(levels) - 2)
        levels_N = torch.lerp(levels[below_N], levels[below_N + 1], positions_N - below_N)
        num_noises = num_groups if config.parts.loss == "dgpo" else len(clean_BL)
        noise_BL = torch.randn(num_noises, *clean_BL.shape[1:], generator=source)
        if num_noises == num_groups:
            noise_BL = noise_BL.repeat_interleave(config.group_size, dim=0)
        levels_B = levels_N.repeat_interleave(config.group_size)
        drawn.append(NoisedSamples(clean=clean_BL, noise=noise_BL.to(clean_BL), levels=levels_B.to(clean_BL)))
    return drawn


def _divide(
    advantages: Sequence[float | None], batches: Sequence[SampledBatch], *, limit: float
) -> list[tuple[Tensor, Tensor]]:
    """Advantages [B] and weights [B] by batch; a sample without an advantage has the weight 0."""
    divided: list[tuple[Tensor, Tensor]] = []
    start = 0
    for batch in batches:
        own = advantages[start : start + len(batch.prompts)]
        start += len(own)
        values_B = torch.tensor([advantage or 0.0 for advantage in own]).clamp(-limit, limit)
        weights_B = torch.tensor([float(advantage is not None) for advantage in own])
        divided.append((values_B.to(batch.clean), weights_B.to(batch.clean)))
    return divided


def _backward(losses_B: Tensor, weights_B: Tensor, statistics: UpdateStatistics) -> None:
    loss = (losses_B * weights_B).sum()
    statistics.losses.append(loss.item())
    loss.backward()
