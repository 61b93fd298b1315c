"""Metrics of a GRPO step: statistics of the responses, effects of the update on tokens."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from longrl_trainer.objectives.correction import SamplerWeights
from longrl_trainer.rewards.answer import is_correct
from longrl_trainer.rl.groups import RolloutGroup
from longrl_trainer.rl.monitor import monitor_metrics
from longrl_trainer.training.scoring import NO_WORK
from longvideo_reason_data.records.answers import parse_response


class TokenStatistics:
    """Sums over the tokens of a step, accumulated one response at a time."""

    def __init__(self) -> None:
        self.loss = 0.0
        self.gradient_norm = 0.0
        self._num_compared = 0
        self._gap_sum = 0.0
        self._gap_max = 0.0
        self._num_tokens = 0
        self._num_clipped = 0
        self._entropy_sum = 0.0
        self._kl_sum = 0.0
        self._num_weights = 0
        self._num_capped = 0
        self._weight_sum = 0.0
        self._squared_weight_sum = 0.0
        self.work = NO_WORK
        """What the trainer computes in the step, by all ranks."""
        self.token_gaps: dict[int, list[list[float]]] = {}
        """Of recorded groups, by their place in the step: for each judged response the trainer's minus the sampler's
        log-probability of every token."""

    @classmethod
    def joined(cls, parts: Sequence["TokenStatistics"]) -> "TokenStatistics":
        """The statistics of a step whose responses were divided among ranks; the gradient's norm is that of all."""
        if len(parts) == 1:
            return parts[0]
        whole = cls()
        for name in vars(whole).keys() - {"token_gaps", "work"}:
            setattr(whole, name, sum(getattr(part, name) for part in parts))
        for part in parts:
            whole.token_gaps |= part.token_gaps
        whole.gradient_norm, whole.work = parts[0].gradient_norm, parts[0].work
        whole._gap_max = float(torch.tensor([part._gap_max for part in parts], dtype=torch.float64).max())
        return whole

    @property
    def gap_mean_abs(self) -> float:
        """Mean absolute difference between the sampler's and the trainer's log-probability of the same token."""
        return self._gap_sum / self._num_compared

    def compare_with_sampler(
        self, trainer_logprobs_R: Tensor, sampler_logprobs: Sequence[float], *, recorded_place: int | None = None
    ) -> None:
        """Add both log-probabilities of one response; of a recorded group also, by its place, those of each token."""
        sampler_R = torch.tensor(sampler_logprobs, dtype=torch.float64)
        signed_R = trainer_logprobs_R.detach().to("cpu", torch.float64) - sampler_R
        if recorded_place is not None:
            self.token_gaps.setdefault(recorded_place, []).append(signed_R.tolist())
        gap_R = signed_R.abs()
        self._num_compared += gap_R.numel()
        self._gap_sum += gap_R.sum().item()
        # A plain `max` could lose a NaN, which must reach the check.
        self._gap_max = float(torch.maximum(gap_R.max(), torch.tensor(self._gap_max, dtype=torch.float64)))

    def add_response(self, *, is_clipped_R: Tensor, entropies_R: Tensor, kl_R: Tensor | None) -> None:
        """Add the objective's terms of one response."""
        self._num_tokens += is_clipped_R.numel()
        self._num_clipped += int(is_clipped_R.sum())
        self._entropy_sum += entropies_R.detach().sum().item()
        self._kl_sum += kl_R.detach().sum().item() if kl_R is not None else 0.0

    def add_sampler_weights(self, weights: SamplerWeights) -> None:
        """Add the importance weights of one response."""
        values = weights.weights.double()
        self._num_weights += values.numel()
        self._num_capped += int(weights.is_capped.sum())
        self._weight_sum += values.sum().item()
        self._squared_weight_sum += values.square().sum().item()

    @property
    def effective_sample_fraction(self) -> float | None:
        """The effective sample size of the importance weights by their number: (sum w)^2 / (n sum w^2), Kish 1965.

        None without weights.
        """
        if not self._squared_weight_sum:
            return 0.0 if self._num_weights else None
        return self._weight_sum**2 / (self._num_weights * self._squared_weight_sum)

    def metrics(self) -> dict[str, Any]:
        """The step's line in the journal; if no tokens were trained, the means over tokens are None."""
        num_tokens = self._num_tokens

        def per_token(total: float) -> float | None:
            return total / num_tokens if num_tokens else None

        return {
            "loss": self.loss,
            "gradient_norm": self.gradient_norm,
            "logprob_gap": {"mean_abs": self.gap_mean_abs, "max_abs": self._gap_max},
            "entropy": per_token(self._entropy_sum),
            "clip_fraction": per_token(self._num_clipped),
            "kl": per_token(self._kl_sum),
            "effective_sample_fraction": self.effective_sample_fraction,
            "capped_weight_fraction": self._num_capped / self._num_weights if self._num_weights else None,
        }


def rollout_metrics(groups: Sequence[RolloutGroup]) -> dict[str, Any]:
    """Statistics of a step's responses; as in rewards, one with a control token is neither right nor well formed."""
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    scores = [score for group in groups for score in group.scores]
    parsed = [
        (parse_response(rollout.text, group.question.record.options), group.question.record)
        for group in groups
        for rollout in group.rollouts
    ]
    is_plain = [not score.has_control_token for score in scores]
    return {
        "reward": _mean([score.total for score in scores if score.total is not None]),
        "rewards": {
            name: _mean([value for score in scores if (value := score.terms[name].value) is not None])
            for name in scores[0].terms
        },
        "reward_statuses": {
            name: dict(Counter(str(score.terms[name].status) for score in scores)) for name in scores[0].terms
        },
        "accuracy": _mean(
            [
                float(plain and is_correct(answer, record))
                for plain, (answer, record) in zip(is_plain, parsed, strict=True)
                if record.options
            ]
        ),
        "format_rate": _mean(
            [float(plain and answer.well_formed) for plain, (answer, _) in zip(is_plain, parsed, strict=True)]
        ),
        "finished_rate": _mean([float(rollout.finished) for rollout in rollouts]),
        "response_tokens": _mean([float(len(rollout.token_ids)) for rollout in rollouts]),
        "responses_not_judged": sum(score.total is None for score in scores),
        "groups": len(groups),
        "groups_without_spread": sum(not group.has_spread for group in groups),
        **monitor_metrics(groups, [answer for answer, _ in parsed]),
    }


def count_sampled(groups: Sequence[RolloutGroup]) -> int:
    """Tokens of all responses of a step."""
    return sum(len(rollout.token_ids) for group in groups for rollout in group.rollouts)


def summarise_steps(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Summary of the journal of a whole run."""
    return {
        "num_steps": len(lines),
        "rewards": [line["reward"] for line in lines],
        "logprob_gap_mean_abs": max(line["logprob_gap"]["mean_abs"] for line in lines),
        "logprob_gap_max_abs": max(line["logprob_gap"]["max_abs"] for line in lines),
    }


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None
