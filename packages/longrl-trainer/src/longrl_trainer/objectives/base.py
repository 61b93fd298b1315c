"""What a reinforcement learning step minimises, built once from the recipe and passed to all that need it.

An objective defines how the responses of a step are compared, the loss of each token of a response, the weight of a
response in the loss of its step, and how far the policy may move away from the reference. The parts are pure functions
in the modules beside this one; a new loss is such a function and a case in `build_objective`, and nothing else depends
on the choice.

Shape legend: R tokens of a response.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from torch import Tensor

from longrl_trainer.config.objectives import ObjectiveParts
from longrl_trainer.config.sections import AdvantageName, AggregationName, CorrectionName, KlEstimatorName
from longrl_trainer.config.stages import GrpoConfig
from longrl_trainer.objectives.advantages import GroupRewards, penalised_advantages, step_advantages
from longrl_trainer.objectives.correction import SamplerWeights, sampler_weights
from longrl_trainer.objectives.losses import (
    PolicyLoss,
    clipped_loss,
    clipped_weight_loss,
    sequence_clipped_loss,
    soft_gated_loss,
)
from longrl_trainer.objectives.terms import (
    kl_divergence,
    overlong_penalty,
    response_weights,
    weighted_kl_divergence,
)

__all__ = ["Divergence", "FixedTerms", "Objective", "OverlongPenalty", "ResponseLoss", "TokenLoss", "build_objective"]


class TokenLoss(Protocol):
    """The loss of each token of one response, given one advantage for the whole response or one for each token."""

    def __call__(self, logprobs_R: Tensor, old_logprobs_R: Tensor, advantage: Tensor | float) -> PolicyLoss:
        """The losses [R], and where the clip was active."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedTerms:
    """What doesn't change for a response during the updates of a step.

    Attributes:
        advantage: Of the response, or of every token [R].
        old_logprobs: The policy's before the first update, shape [R].
        reference_logprobs: The reference's, shape [R]; None without one.
        sampler_weights: Importance weights; None if there are none.
    """

    advantage: Tensor | float
    old_logprobs: Tensor
    reference_logprobs: Tensor | None = None
    sampler_weights: SamplerWeights | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseLoss:
    """The loss of one response, term by term."""

    losses: Tensor
    """Loss of every token with all its terms, to be minimised, shape [R]."""
    is_clipped: Tensor
    """Where the clip was active, shape [R]."""
    kl: Tensor | None
    """Divergence from the reference, shape [R]; None without a reference."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Divergence:
    """How the divergence from the reference counts.

    Attributes:
        coefficient: Its weight.
        estimator: How it is estimated.
        is_reward: Whether it lowers rewards, and adds nothing to the loss.
        has_ratio: Whether it is multiplied by the probability ratio.
    """

    coefficient: float
    estimator: KlEstimatorName
    is_reward: bool
    has_ratio: bool

    def measure(self, logprobs_R: Tensor, fixed: FixedTerms) -> Tensor | None:
        """The divergence of every token [R]; None without a reference."""
        if fixed.reference_logprobs is None:
            return None
        if self.has_ratio:
            return weighted_kl_divergence(logprobs_R, fixed.old_logprobs, fixed.reference_logprobs, self.estimator)
        return kl_divergence(logprobs_R, fixed.reference_logprobs, self.estimator)


@dataclass(frozen=True, slots=True, kw_only=True)
class OverlongPenalty:
    """A reward of its own for the length of a response, from -1 to 0.

    Attributes:
        weight: Its weight among the rewards.
        max_tokens: Where it is -1.
        buffer_tokens: How far below that it begins.
    """

    weight: float
    max_tokens: int
    buffer_tokens: int

    def __call__(self, num_tokens: int) -> float:
        """The reward of a response of this length."""
        return overlong_penalty(num_tokens, max_tokens=self.max_tokens, buffer_tokens=self.buffer_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """What a step minimises.

    Attributes:
        token_loss: Loss of each token of a response.
        advantage: How responses are compared.
        aggregation: Weight of a response in the loss of its step.
        divergence: How the divergence from the reference counts.
        entropy_coefficient: Weight of the entropy, which is raised.
        correction: Importance weights for the difference between sampler and trainer.
        correction_cap: The largest of them.
        max_response_tokens: The sampler's limit, by which one of the aggregations divides.
        overlong: Penalty for long responses, if there is one.
    """

    token_loss: TokenLoss
    advantage: AdvantageName
    aggregation: AggregationName
    divergence: Divergence
    entropy_coefficient: float
    correction: CorrectionName
    correction_cap: float
    max_response_tokens: int
    overlong: OverlongPenalty | None

    @property
    def needs_reference(self) -> bool:
        """Whether the starting model has to score every response too."""
        return self.divergence.coefficient > 0

    @property
    def penalises_rewards(self) -> bool:
        """Whether rewards are lowered by the divergence, so that advantages follow from log-probabilities too."""
        return self.needs_reference and self.divergence.is_reward

    @property
    def has_entropy_bonus(self) -> bool:
        """Whether the entropy needs a gradient."""
        return self.entropy_coefficient > 0

    @property
    def trains_every_response(self) -> bool:
        """Whether a response of advantage 0 has a gradient."""
        return self.needs_reference or self.has_entropy_bonus

    def compare(self, groups: Sequence[GroupRewards]) -> list[list[float | None]]:
        """Advantage of every response of a step, by group; None where there is no reward."""
        return step_advantages(groups, self.advantage)

    def compare_penalised(
        self, groups: Sequence[GroupRewards], divergences: Sequence[Sequence[Tensor | None]]
    ) -> list[list[Tensor | None]]:
        """The same with rewards lowered by the divergence of every token [R]: for each response [R] or one number."""
        coefficient = self.divergence.coefficient
        penalties = [[None if kl_R is None else coefficient * kl_R for kl_R in of_group] for of_group in divergences]
        return penalised_advantages(groups, penalties, self.advantage)

    def weigh(self, lengths: Sequence[Sequence[int]]) -> list[list[float]]:
        """Weight of each token of every response, given the lengths of all responses of the step by group."""
        flat = iter(
            response_weights(
                [length for of_group in lengths for length in of_group],
                self.aggregation,
                max_response_tokens=self.max_response_tokens,
            )
        )
        return [[next(flat) for _ in of_group] for of_group in lengths]

    def correct(self, logprobs_R: Tensor, sampler_logprobs_R: Tensor) -> SamplerWeights | None:
        """Importance weights of a response; None if the recipe wants none."""
        return sampler_weights(logprobs_R, sampler_logprobs_R, self.correction, cap=self.correction_cap)

    def lose(self, logprobs_R: Tensor, entropies_R: Tensor, fixed: FixedTerms) -> ResponseLoss:
        """The loss of one response, token by token.

        The importance weights apply to the policy's loss, not to divergence and entropy, as in other trainers.
        """
        policy = self.token_loss(logprobs_R, fixed.old_logprobs, fixed.advantage)
        losses_R = policy.losses if fixed.sampler_weights is None else policy.losses * fixed.sampler_weights.weights
        kl_R = self.divergence.measure(logprobs_R, fixed)
        if kl_R is not None and not self.divergence.is_reward:
            losses_R = losses_R + self.divergence.coefficient * kl_R
        if self.has_entropy_bonus:
            losses_R = losses_R - self.entropy_coefficient * entropies_R
        return ResponseLoss(losses=losses_R, is_clipped=policy.is_clipped, kl=kl_R)


def build_objective(config: GrpoConfig) -> Objective:
    """The objective that a recipe specifies."""
    parts, limit = config.parts, config.max_response_tokens
    overlong = None
    if parts.overlong_buffer:
        buffer_tokens = max(1, round(parts.overlong_buffer * limit))
        overlong = OverlongPenalty(weight=config.overlong_penalty, max_tokens=limit, buffer_tokens=buffer_tokens)
    return Objective(
        token_loss=_build_loss(parts, config),
        advantage=parts.advantage,
        aggregation=parts.aggregation,
        divergence=Divergence(
            coefficient=config.kl_coefficient,
            estimator=parts.kl_estimator,
            is_reward=parts.kl_place == "reward",
            has_ratio=config.kl_importance,
        ),
        entropy_coefficient=config.entropy_coefficient,
        correction=config.correction,
        correction_cap=config.sampler_correction_cap,
        max_response_tokens=limit,
        overlong=overlong,
    )


def _build_loss(parts: ObjectiveParts, config: GrpoConfig) -> TokenLoss:
    match parts.loss:
        case "clipped":
            return partial(clipped_loss, clip_low=parts.clip_low, clip_high=parts.clip_high)
        case "gspo":
            return partial(sequence_clipped_loss, clip_low=parts.clip_low, clip_high=parts.clip_high)
        case "cispo":
            return partial(clipped_weight_loss, clip_low=parts.clip_low, clip_high=parts.clip_high)
        case "sapo":
            return partial(
                soft_gated_loss,
                temperature_positive=config.sapo_temperature_positive,
                temperature_negative=config.sapo_temperature_negative,
            )
