"""From judged groups to new weights: the update of one step.

The loop around it is `longrl_trainer.grpo`; here nothing is sampled or judged, and nothing is written to disk. What is
made smaller is the `Objective`'s matter; the recipe only says how it is computed.

Shape legend: R tokens of a response.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from longrl_trainer.config.stages import GrpoConfig
from longrl_trainer.errors import TrainerError
from longrl_trainer.objectives.base import Objective
from longrl_trainer.rl.groups import RolloutGroup
from longrl_trainer.rl.step_metrics import TokenStatistics
from longrl_trainer.training.optimizer import Optimizer
from longrl_trainer.training.ranks import ALONE, Ranks
from longrl_trainer.training.scoring import plan_rows, score_row
from mrsp_engine.encoding.step_media import StepMedia
from mrsp_engine.families.base import Policy
from mrsp_engine.logprobs import BranchScores


def update_policy(
    policy: Policy,
    optimizer: Optimizer,
    groups: Sequence[RolloutGroup],
    objective: Objective,
    config: GrpoConfig,
    learning_rate: float,
    media: StepMedia,
    reference: Policy | None,
    ranks: Ranks = ALONE,
) -> TokenStatistics:
    """One or several optimizer steps on the same rollouts.

    Where the vision is trained too, the gradients of all rows meet in the step's embeddings, and then go through the
    encoder once. The reference makes its own of the same videos.

    A group without spread has only zero advantages. Unless there is a KL term it adds nothing to the gradient and is
    left out of the computation, but not out of the weights. The gap between sampler and trainer is measured on every
    group that is computed, and on one group if there is nothing to compute.
    """
    statistics = TokenStatistics()
    judged = [group for group in groups if group.judged()]
    if not judged:
        raise TrainerError("no response of this step could be judged; look at the rewards' verifiers")
    weights = dict(zip(map(id, judged), weigh_groups(judged, objective), strict=True))
    trained = [group for group in judged if group.has_spread or reference is not None]
    rows = [[trained[index] for index in row] for row in plan_rows([g.as_prompt_group() for g in trained], config)]
    references: dict[int, list[Tensor]] = {}
    if reference is not None:
        with torch.no_grad(), StepMedia(reference, media.plans, ranks.group).lend():
            for row in rows:
                references |= zip(map(id, row), score_frozen(reference, row, config, ranks), strict=True)
    if not trained:
        with media.lend():
            measure_gap(statistics, judged[0], score_frozen(policy, judged[:1], config, ranks)[0], config)
        return statistics

    old: dict[int, list[Tensor]] = {}
    for update in range(config.updates_per_batch):
        statistics.loss = 0.0
        if update > 0:
            media.encode()
        with media.lend(with_gradients=True):
            for row in rows:
                losses: list[Tensor] = []
                for group, scores in zip(row, score_rollouts(policy, row, config, ranks), strict=True):
                    place = id(group)
                    if update == 0:
                        # No weight has changed since the rollouts were drawn, so these are their old log-probabilities.
                        old[place] = [logprobs_R.detach() for logprobs_R in scores.logprobs]
                        measure_gap(statistics, group, old[place], config)
                    losses.append(
                        group_loss(
                            group, scores, old[place], references.get(place), weights[place], objective, statistics
                        )
                    )
                loss = torch.stack(losses).sum()
                loss.backward()
                statistics.loss += loss.item()
        media.backward()
        ranks.sum_gradients(policy.model)
        statistics.gradient_norm = optimizer.step(learning_rate)
    return statistics


def group_loss(
    group: RolloutGroup,
    scores: BranchScores,
    old_logprobs: Sequence[Tensor],
    reference_logprobs: Sequence[Tensor] | None,
    weights: Sequence[float],
    objective: Objective,
    statistics: TokenStatistics,
) -> Tensor:
    """A group's share in the loss of its step."""
    loss = scores.logprobs[0].new_zeros(())
    for index, (_, advantage) in enumerate(group.judged()):
        logprobs_R = scores.logprobs[index]
        reference_R = None if reference_logprobs is None else reference_logprobs[index]
        tokens = objective.token_losses(logprobs_R, old_logprobs[index], advantage, reference_R)
        loss = loss + weights[index] * tokens.losses.sum()
        statistics.add_response(is_clipped_R=tokens.is_clipped, entropies_R=scores.entropies[index], kl_R=tokens.kl)
    return loss


def weigh_groups(groups: Sequence[RolloutGroup], objective: Objective) -> list[list[float]]:
    """The objective's weights over the whole step, cut into groups."""
    lengths = [[len(rollout.token_ids) for rollout, _ in group.judged()] for group in groups]
    flat = iter(objective.weights([length for of_group in lengths for length in of_group]))
    return [[next(flat) for _ in of_group] for of_group in lengths]


def score_rollouts(policy: Policy, row: Sequence[RolloutGroup], config: GrpoConfig, ranks: Ranks) -> list[BranchScores]:
    """Log-probabilities of the responses of a row's groups at the temperature they were sampled with."""
    return score_row(policy, [group.as_prompt_group() for group in row], config, ranks, temperature=config.temperature)


@torch.no_grad()
def score_frozen(policy: Policy, row: Sequence[RolloutGroup], config: GrpoConfig, ranks: Ranks) -> list[list[Tensor]]:
    """Log-probabilities of the responses of a row's groups, without a gradient."""
    return [scores.logprobs for scores in score_rollouts(policy, row, config, ranks)]


def measure_gap(
    statistics: TokenStatistics, group: RolloutGroup, logprobs: Sequence[Tensor], config: GrpoConfig
) -> None:
    """Compare sampler and trainer token by token, and stop the run when they are not the same model."""
    for (rollout, _), logprobs_R in zip(group.judged(), logprobs, strict=True):
        statistics.compare_with_sampler(logprobs_R, rollout.logprobs)
    if not statistics.gap_mean_abs <= config.max_logprob_gap:
        raise TrainerError(
            f"sampler and trainer disagree: mean absolute log-probability gap {statistics.gap_mean_abs:.2e}, "
            f"`max_logprob_gap` allows {config.max_logprob_gap:.2e}; raise it for a coarse dtype, otherwise the "
            "sampler's weights, positions or embeddings are not the trainer's"
        )
