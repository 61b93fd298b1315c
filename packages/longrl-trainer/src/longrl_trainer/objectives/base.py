"""What a reinforcement learning step minimises, built once from the recipe and passed to all that need it.

An objective defines how responses to one question are compared, the loss of each token of a response, the weight of a
response in the loss of its step, and how far the policy may move away from the reference. A new loss is a module with a
`TokenLoss` and a case in `build_objective`; nothing else depends on the choice.

Shape legend: R tokens of a response.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from longrl_trainer.config.sections import AdvantageName, AggregationName
from longrl_trainer.config.stages import GrpoConfig
from longrl_trainer.objectives.advantages import group_advantages
from longrl_trainer.objectives.clipped import ClippedLoss, PolicyLoss
from longrl_trainer.objectives.terms import kl_divergence_k3, response_weights

__all__ = ["Objective", "ResponseLoss", "TokenLoss", "build_objective"]


class TokenLoss(Protocol):
    """The loss of each token of one response, given one advantage for the whole response."""

    def __call__(self, logprobs_R: Tensor, old_logprobs_R: Tensor, advantage: float) -> PolicyLoss:
        """The losses [R], and where the token has no gradient."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseLoss:
    """The loss of one response, term by term."""

    losses: Tensor
    """Loss of every token including the divergence from the reference, to be minimised, shape [R]."""
    is_clipped: Tensor
    """Where the clip was active, shape [R]."""
    kl: Tensor | None
    """Divergence from the reference, shape [R]; None without a reference."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """What a step minimises.

    Attributes:
        token_loss: Loss of each token of a response.
        advantage: How responses to one question are compared.
        aggregation: Weight of a response in the loss of its step.
        kl_coefficient: Weight of the divergence from the reference.
        max_response_tokens: The sampler's limit, by which one of the aggregations divides.
    """

    token_loss: TokenLoss
    advantage: AdvantageName
    aggregation: AggregationName
    kl_coefficient: float
    max_response_tokens: int

    @property
    def needs_reference(self) -> bool:
        """Whether the starting model has to score every response too."""
        return self.kl_coefficient > 0

    def compare(self, rewards: Sequence[float | None]) -> list[float | None]:
        """Advantage of every response to one question; None where there is no reward."""
        return group_advantages(rewards, self.advantage)

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

    def lose(
        self, logprobs_R: Tensor, old_logprobs_R: Tensor, advantage: float, reference_logprobs_R: Tensor | None
    ) -> ResponseLoss:
        """The loss of one response, token by token; without a reference there is no divergence."""
        policy = self.token_loss(logprobs_R, old_logprobs_R, advantage)
        if reference_logprobs_R is None:
            return ResponseLoss(losses=policy.losses, is_clipped=policy.is_clipped, kl=None)
        kl_R = kl_divergence_k3(logprobs_R, reference_logprobs_R)
        return ResponseLoss(losses=policy.losses + self.kl_coefficient * kl_R, is_clipped=policy.is_clipped, kl=kl_R)


def build_objective(config: GrpoConfig) -> Objective:
    """The objective that a recipe specifies."""
    return Objective(
        token_loss=ClippedLoss(clip_low=config.clip_low, clip_high=config.clip_high),
        advantage=config.advantage,
        aggregation=config.aggregation,
        kl_coefficient=config.kl_coefficient,
        max_response_tokens=config.max_response_tokens,
    )
