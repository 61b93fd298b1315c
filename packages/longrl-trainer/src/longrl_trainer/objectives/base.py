"""What an update makes smaller, as one value: how responses are compared, what their tokens cost, what each counts.

Shape legend: R tokens of a response.

An objective is made once of the recipe (`objectives.registry`) and handed to whoever judges or updates. Only how far a
response's tokens are from their old log-probabilities differs between objectives of this kind; it is one module each,
a `ResponseLoss`. The rest they share. Knows nothing of models, prompts or rewards' origins.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from longrl_trainer.config.sections import AdvantageName, AggregationName
from longrl_trainer.objectives.advantages import group_advantages
from longrl_trainer.objectives.terms import kl_divergence_k3, response_weights


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyLoss:
    """The loss of one response, before a divergence from the reference is added."""

    losses: Tensor
    """Loss of every token, to be minimised, shape [R]."""
    is_clipped: Tensor
    """Shape [R]: where the clip was active, so that the token has no gradient."""


class ResponseLoss(Protocol):
    """One objective's own part."""

    def __call__(self, logprobs_R: Tensor, old_logprobs_R: Tensor, advantage: float) -> PolicyLoss:
        """The loss of a response with one advantage; `old_logprobs_R` are those it was drawn with."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLosses:
    """The whole loss of one response, token by token."""

    losses: Tensor
    """Shape [R], with the divergence from the reference."""
    is_clipped: Tensor
    """Shape [R]."""
    kl: Tensor | None
    """Divergence from the reference, shape [R]; None without a reference."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """What one update makes smaller: `sum_i weight_i * sum_t loss_{i,t}` over responses i and their tokens t."""

    response_loss: ResponseLoss
    advantage: AdvantageName
    aggregation: AggregationName
    max_response_tokens: int
    """The sampler's limit, which one of the aggregations needs."""
    kl_coefficient: float
    """Weight of the divergence from the reference."""

    def advantages(self, rewards: Sequence[float | None]) -> list[float | None]:
        """How much better each response of a group was than its siblings; None where it wasn't judged."""
        return group_advantages(rewards, self.advantage)

    def weights(self, lengths: Sequence[int]) -> list[float]:
        """What every token of each response counts; `lengths` are those of all judged responses of the step."""
        return response_weights(lengths, self.aggregation, max_response_tokens=self.max_response_tokens)

    def token_losses(
        self, logprobs_R: Tensor, old_logprobs_R: Tensor, advantage: float, reference_logprobs_R: Tensor | None
    ) -> TokenLosses:
        """The loss of every token of one response."""
        policy_loss = self.response_loss(logprobs_R, old_logprobs_R, advantage)
        losses_R, kl_R = policy_loss.losses, None
        if reference_logprobs_R is not None:
            kl_R = kl_divergence_k3(logprobs_R, reference_logprobs_R)
            losses_R = losses_R + self.kl_coefficient * kl_R
        return TokenLosses(losses=losses_R, is_clipped=policy_loss.is_clipped, kl=kl_R)
