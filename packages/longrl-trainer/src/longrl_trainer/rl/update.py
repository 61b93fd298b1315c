"""From judged groups to new weights: the update of one step.

The loop around it is `longrl_trainer.grpo`; this module samples and judges nothing, and writes nothing to disk.

Shape legend: R tokens of a response.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from longrl_trainer.errors import TrainerError
from longrl_trainer.objectives.base import Objective
from longrl_trainer.rl.groups import RolloutGroup
from longrl_trainer.rl.step_metrics import TokenStatistics
from longrl_trainer.training.optimizer import TrainingOptimizer
from longrl_trainer.training.scoring import RowScores, RowScoring
from mrsp_engine.encoding.step_media import StepMedia
from mrsp_engine.families.base import Policy
from mrsp_engine.logprobs import BranchScores


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyUpdate:
    """Updates the policy of a run, in the same way in every step.

    Attributes:
        policy: The model in training.
        optimizer: The optimizer of its parameters.
        objective: The objective to minimise.
        scoring: How rows are scored, at the sampling temperature.
        reference: The starting model, if the objective needs it; with adapters, which it is scored without, it is the
            policy itself.
        num_updates: Optimizer steps on the same rollouts.
        max_logprob_gap: Maximum difference between sampler and trainer (mean absolute log-probability).
    """

    policy: Policy
    optimizer: TrainingOptimizer
    objective: Objective
    scoring: RowScoring
    reference: Policy | None = None
    num_updates: int = 1
    max_logprob_gap: float

    def run(self, groups: Sequence[RolloutGroup], media: StepMedia, learning_rate: float) -> TokenStatistics:
        """One or several optimizer steps on the same rollouts.

        Where the vision is trained too, the gradients of all rows add up in the step's embeddings, and then go through
        the encoder once. The reference computes its own embeddings of the same videos.

        A group without spread has only zero advantages. Unless there is a KL term it adds nothing to the gradient and
        is omitted from the computation, but not from the weights. The gap between sampler and trainer is measured on
        every group that is computed, and on one group if there is nothing to compute; it is judged before the weights
        change.

        All ranks call this with the same groups, and get the same statistics.

        Raises:
            TrainerError: No response could be judged, or sampler and trainer disagree.
        """
        ranks = self.scoring.ranks
        statistics = TokenStatistics()
        judged = [group for group in groups if group.judged()]
        if not judged:
            raise TrainerError("no response of this step could be judged; check the rewards' verifiers")
        weights = dict(zip(map(id, judged), weigh_groups(judged, self.objective), strict=True))
        trained = [group for group in judged if group.has_spread or self.reference is not None]
        computed = trained or judged[:1]
        turns = [
            ([computed[index] for index in turn.members], turn.num_passes)
            for turn in self.scoring.plan([group.as_prompt_group() for group in computed])
        ]
        references: dict[int, list[Tensor]] = {}
        if self.reference is not None:
            adapters = self.reference.adapters
            off = nullcontext() if adapters is None else adapters.turned_off()
            with torch.no_grad(), off, StepMedia(self.reference, media.plans, ranks.group).lend():
                for row, num_passes in turns:
                    references |= zip(map(id, row), self._score_frozen(self.reference, row, num_passes), strict=True)
        if not trained:
            with media.lend():
                for row, num_passes in turns:
                    for group, logprobs in zip(row, self._score_frozen(self.policy, row, num_passes), strict=True):
                        compare_with_sampler(statistics, group, logprobs)
            statistics = TokenStatistics.joined(ranks.exchange_between_data_ranks(statistics))
            self._check_gap(statistics)
            return statistics

        old: dict[int, list[Tensor]] = {}
        for update in range(self.num_updates):
            statistics.loss = 0.0
            if update > 0:
                media.encode()
            with media.lend(with_gradients=True):
                for row, num_passes in turns:
                    losses: list[Tensor] = []
                    row_scores = self._score(self.policy, row, num_passes)
                    for group, scores in zip(row, row_scores.groups, strict=True):
                        place = id(group)
                        if update == 0:
                            # No weight has changed since the rollouts were drawn: these are their old log-probs.
                            old[place] = [logprobs_R.detach() for logprobs_R in scores.logprobs]
                            compare_with_sampler(statistics, group, old[place])
                        of_reference = references.get(place)
                        losses.append(
                            group_loss(
                                self.objective, group, scores, old[place], of_reference, weights[place], statistics
                            )
                        )
                    statistics.loss += row_scores.backward(torch.stack(losses).sum() if losses else None)
            if update == 0:
                # Together, so that all ranks stop if one of them finds a difference.
                self._check_gap(TokenStatistics.joined(ranks.exchange_between_data_ranks(statistics)))
            media.backward()
            ranks.sum_gradients(self.policy)
            statistics.gradient_norm = self.optimizer.step(learning_rate)
        return TokenStatistics.joined(ranks.exchange_between_data_ranks(statistics))

    def _score(self, policy: Policy, row: Sequence[RolloutGroup], num_passes: int) -> RowScores:
        """Log-probabilities of the responses of a row's groups."""
        return self.scoring.score(policy, [group.as_prompt_group() for group in row], num_passes)

    @torch.no_grad()
    def _score_frozen(self, policy: Policy, row: Sequence[RolloutGroup], num_passes: int) -> list[list[Tensor]]:
        """Log-probabilities of the responses of a row's groups, without a gradient."""
        return [scores.logprobs for scores in self._score(policy, row, num_passes).groups]

    def _check_gap(self, statistics: TokenStatistics) -> None:
        """Stop the run if sampler and trainer differ too much."""
        if not statistics.gap_mean_abs <= self.max_logprob_gap:
            raise TrainerError(
                f"sampler and trainer disagree: mean absolute log-probability gap {statistics.gap_mean_abs:.2e}, "
                f"`max_logprob_gap` allows {self.max_logprob_gap:.2e}; raise it for low-precision arithmetic, "
                f"otherwise the "
                "sampler's weights, positions or embeddings differ from the trainer's"
            )


def compare_with_sampler(statistics: TokenStatistics, group: RolloutGroup, logprobs: Sequence[Tensor]) -> None:
    """Compare the sampler's and the trainer's log-probabilities of a group, token by token."""
    for (rollout, _), logprobs_R in zip(group.judged(), logprobs, strict=True):
        statistics.compare_with_sampler(logprobs_R, rollout.logprobs)


def group_loss(
    objective: Objective,
    group: RolloutGroup,
    scores: BranchScores,
    old_logprobs: Sequence[Tensor],
    reference_logprobs: Sequence[Tensor] | None,
    weights: Sequence[float],
    statistics: TokenStatistics,
) -> Tensor:
    """A group's share of the loss of its step."""
    loss = scores.logprobs[0].new_zeros(())
    for index, (_, advantage) in enumerate(group.judged()):
        reference_R = None if reference_logprobs is None else reference_logprobs[index]
        response = objective.lose(scores.logprobs[index], old_logprobs[index], advantage, reference_R)
        loss = loss + weights[index] * response.losses.sum()
        statistics.add_response(is_clipped_R=response.is_clipped, entropies_R=scores.entropies[index], kl_R=response.kl)
    return loss


def weigh_groups(groups: Sequence[RolloutGroup], objective: Objective) -> list[list[float]]:
    """Weight of each token of the judged responses, over the whole step, by group."""
    return objective.weigh([[len(rollout.token_ids) for rollout, _ in group.judged()] for group in groups])
