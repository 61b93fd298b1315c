"""From judged groups to new weights: the update of one step.

The loop around it is `longrl_trainer.grpo`; this module samples and judges nothing, and writes nothing to disk.

Shape legend: R tokens of a response.
"""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from longrl_trainer.errors import TrainerError
from longrl_trainer.objectives.base import FixedTerms, Objective
from longrl_trainer.objectives.terms import kl_divergence
from longrl_trainer.rl.groups import RolloutGroup
from longrl_trainer.rl.step_metrics import TokenStatistics
from longrl_trainer.training.optimizer import TrainingOptimizer
from longrl_trainer.training.scoring import RowScores, RowScoring, StepWork, Turn
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

    def run(
        self, groups: Sequence[RolloutGroup], media: StepMedia, learning_rate: float, *, num_recorded: int = 0
    ) -> TokenStatistics:
        """One or several optimizer steps on the same rollouts.

        Where the vision is trained too, the gradients of all rows add up in the step's embeddings, and then go through
        the encoder once. The reference computes its own embeddings of the same videos.

        A group of zero advantages only, such as one without spread, adds nothing to the gradient unless there is a KL
        term or an entropy bonus; it is omitted from the computation, but not from the weights. The gap between sampler
        and trainer is measured on every group that is computed, and on one group if there is nothing to compute; it is
        judged before the weights change.

        All ranks call this with the same groups, and get the same statistics.

        Args:
            groups: The step's groups.
            media: Their media.
            learning_rate: The step's learning rate.
            num_recorded: Of so many groups, the first ones, the gap of every token is recorded.

        Raises:
            TrainerError: No two responses to a question could be judged, or sampler and trainer disagree.
        """
        ranks = self.scoring.ranks
        statistics = TokenStatistics()
        recorded = {id(group): place for place, group in enumerate(groups[:num_recorded])}
        judged = [group for group in groups if group.judged()]
        if not judged:
            raise TrainerError(
                "no question of this step has two responses that could be judged; check the rewards' verifiers"
            )
        weights = dict(zip(map(id, judged), weigh_groups(judged, self.objective), strict=True))
        trained = [group for group in judged if group.has_advantages or self.objective.trains_every_response]
        computed = trained or judged[:1]
        planned = self.scoring.plan([group.as_prompt_group() for group in computed])
        statistics.work = self._count_work(planned, is_trained=bool(trained))
        turns = [([computed[index] for index in turn.members], turn.num_passes) for turn in planned]
        references = self._score_references(turns, media)
        if not trained:
            with media.lend():
                for row, num_passes in turns:
                    for group, logprobs in zip(row, self._score_frozen(self.policy, row, num_passes), strict=True):
                        compare_with_sampler(statistics, group, logprobs, recorded.get(id(group)))
            statistics = TokenStatistics.joined(ranks.exchange_between_data_ranks(statistics))
            self._check_gap(statistics)
            return statistics

        advantages = self._advantages(judged, turns, references, media)
        fixed: dict[int, list[FixedTerms]] = {}
        for update in range(self.num_updates):
            statistics.loss = 0.0
            if update > 0:
                media.encode()
            with media.lend(with_gradients=True):
                for row, num_passes in turns:
                    losses: list[Tensor] = []
                    row_scores = self._score(
                        self.policy, row, num_passes, trains_entropy=self.objective.has_entropy_bonus
                    )
                    for group, scores in zip(row, row_scores.groups, strict=True):
                        place = id(group)
                        if update == 0:
                            # No weight has changed since the rollouts were drawn: these are their old log-probs.
                            old = [logprobs_R.detach() for logprobs_R in scores.logprobs]
                            compare_with_sampler(statistics, group, old, recorded.get(place))
                            fixed[place] = fix_terms(
                                self.objective, group, advantages[place], old, references.get(place), statistics
                            )
                        losses.append(group_loss(self.objective, scores, fixed[place], weights[place], statistics))
                    statistics.loss += row_scores.backward(torch.stack(losses).sum() if losses else None)
            if update == 0:
                # Together, so that all ranks stop if one of them finds a difference.
                self._check_gap(TokenStatistics.joined(ranks.exchange_between_data_ranks(statistics)))
            media.backward()
            ranks.sum_gradients(self.policy)
            statistics.gradient_norm = self.optimizer.step(learning_rate)
        return TokenStatistics.joined(ranks.exchange_between_data_ranks(statistics))

    def _count_work(self, turns: Sequence[Turn], *, is_trained: bool) -> StepWork:
        """What the step computes; rewards that the divergence lowers take one more pass."""
        num_scored = (self.reference is not None) + (is_trained and self.objective.penalises_rewards)
        return StepWork.of(
            turns,
            self.scoring.costs.shape,
            num_trained=self.num_updates if is_trained else 0,
            num_scored=num_scored if is_trained else num_scored + 1,
            has_adapters=self.policy.adapters is not None,
        )

    def _advantages(
        self,
        judged: Sequence[RolloutGroup],
        turns: Sequence[tuple[list[RolloutGroup], int]],
        references: Mapping[int, list[Tensor]],
        media: StepMedia,
    ) -> dict[int, list[Tensor | float]]:
        """The advantages of the judged responses with the weight of their prompt, by group.

        Where the divergence from the reference counts in the reward, it is measured first, in a pass of its own, and
        every rank learns those of all responses, which are compared with each other.
        """
        if not self.objective.penalises_rewards:
            return {id(group): [group.prompt_weight * advantage for _, advantage in group.judged()] for group in judged}
        places = {id(group): place for place, group in enumerate(judged)}
        measured: dict[int, list[list[float]]] = {}
        with media.lend():
            for row, num_passes in turns:
                for group, logprobs in zip(row, self._score_frozen(self.policy, row, num_passes), strict=True):
                    measured[places[id(group)]] = [
                        kl_divergence(logprobs_R, reference_R, self.objective.divergence.estimator).tolist()
                        for logprobs_R, reference_R in zip(logprobs, references[id(group)], strict=True)
                    ]
        of_all: dict[int, list[list[float]]] = {}
        for part in self.scoring.ranks.exchange_between_data_ranks(measured):
            of_all |= part
        divergences: list[list[Tensor | None]] = []
        for place, group in enumerate(judged):
            of_group = iter(of_all[place])
            divergences.append(
                [
                    None if advantage is None else torch.tensor(next(of_group), dtype=torch.float64)
                    for advantage in group.advantages
                ]
            )
        compared = self.objective.compare_penalised([group.as_rewards() for group in judged], divergences)
        return {
            id(group): [group.prompt_weight * advantage for advantage in advantages if advantage is not None]
            for group, advantages in zip(judged, compared, strict=True)
        }

    def _score_references(
        self, turns: Sequence[tuple[list[RolloutGroup], int]], media: StepMedia
    ) -> dict[int, list[Tensor]]:
        """The reference's log-probabilities of the responses of this data rank, by group; none without a reference."""
        references: dict[int, list[Tensor]] = {}
        if self.reference is not None:
            adapters = self.reference.adapters
            off = nullcontext() if adapters is None else adapters.turned_off()
            with off, StepMedia(self.reference, media.plans, self.scoring.ranks.group).lend():
                for row, num_passes in turns:
                    references |= zip(map(id, row), self._score_frozen(self.reference, row, num_passes), strict=True)
        return references

    def _score(
        self, policy: Policy, row: Sequence[RolloutGroup], num_passes: int, *, trains_entropy: bool = False
    ) -> RowScores:
        """Log-probabilities of the responses of a row's groups."""
        groups = [group.as_prompt_group() for group in row]
        return self.scoring.score(policy, groups, num_passes, trains_entropy=trains_entropy)

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


def compare_with_sampler(
    statistics: TokenStatistics, group: RolloutGroup, logprobs: Sequence[Tensor], recorded_place: int | None
) -> None:
    """Compare the sampler's and the trainer's log-probabilities of a group, token by token."""
    for (rollout, _), logprobs_R in zip(group.judged(), logprobs, strict=True):
        statistics.compare_with_sampler(logprobs_R, rollout.logprobs, recorded_place=recorded_place)


def fix_terms(
    objective: Objective,
    group: RolloutGroup,
    advantages: Sequence[Tensor | float],
    old_logprobs: Sequence[Tensor],
    reference_logprobs: Sequence[Tensor] | None,
    statistics: TokenStatistics,
) -> list[FixedTerms]:
    """What stays the same for the judged responses of a group during the updates of a step."""
    found: list[FixedTerms] = []
    for index, ((rollout, _), advantage, old_R) in enumerate(
        zip(group.judged(), advantages, old_logprobs, strict=True)
    ):
        weights = objective.correct(old_R, torch.tensor(rollout.logprobs, dtype=torch.float64))
        if weights is not None:
            statistics.add_sampler_weights(weights)
        found.append(
            FixedTerms(
                advantage=advantage.to(old_R) if isinstance(advantage, Tensor) else advantage,
                old_logprobs=old_R,
                reference_logprobs=None if reference_logprobs is None else reference_logprobs[index],
                sampler_weights=weights,
            )
        )
    return found


def group_loss(
    objective: Objective,
    scores: BranchScores,
    fixed: Sequence[FixedTerms],
    weights: Sequence[float],
    statistics: TokenStatistics,
) -> Tensor:
    """A group's share of the loss of its step."""
    loss = scores.logprobs[0].new_zeros(())
    for logprobs_R, entropies_R, terms, weight in zip(scores.logprobs, scores.entropies, fixed, weights, strict=True):
        response = objective.lose(logprobs_R, entropies_R, terms)
        loss = loss + weight * response.losses.sum()
        statistics.add_response(is_clipped_R=response.is_clipped, entropies_R=entropies_R, kl_R=response.kl)
    return loss


def weigh_groups(groups: Sequence[RolloutGroup], objective: Objective) -> list[list[float]]:
    """Weight of each token of the judged responses, over the whole step, by group."""
    return objective.weigh([[len(rollout.token_ids) for rollout, _ in group.judged()] for group in groups])
