"""GRPO: the model answers questions, answers are compared within their group, better ones become more likely.

One step, read top to bottom in `train_grpo`: draw G responses per question from the sampler, let the rewards judge
them, turn rewards into advantages, climb the clipped objective, hand the new weights to the sampler. Every pass over a
group computes its long prompt once. What is measured on the way is in `step_metrics`.

Under torchrun every rank runs the same loop (`parallel`): it samples and judges its share of the prompts and computes
its share of every row, and all make the same update.
"""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from longrl_trainer.config import GrpoConfig
from longrl_trainer.errors import TrainerError
from longrl_trainer.groups import RolloutGroup, judge_groups
from longrl_trainer.losses import clipped_policy_loss, kl_divergence_k3, response_weights
from longrl_trainer.models import create_optimizer, open_engine, open_policy, open_training_policy
from longrl_trainer.optimizer import Optimizer, warmup_learning_rate
from longrl_trainer.parallel import ALONE, Ranks, join_ranks
from longrl_trainer.progress import ProgressDisplay, SilentProgress
from longrl_trainer.rewards.registry import load_rewards
from longrl_trainer.runs import open_run
from longrl_trainer.samples import Question, build_question_prompt, load_questions, longest_prompt
from longrl_trainer.scoring import plan_rows, score_row
from longrl_trainer.seeds import derive_seed
from longrl_trainer.step_metrics import Stopwatch, TokenStatistics, describe_group, rollout_metrics, summarise_steps
from longrl_trainer.step_vision import count_frames_encoded, open_step, storing
from mrsp_engine.families.base import Policy
from mrsp_engine.logprobs import BranchScores
from mrsp_engine.prompts import Prompt
from mrsp_engine.rollout.base import Refusal, Rollout, RolloutEngine, SamplingSettings
from mrsp_engine.step_media import StepMedia


@dataclass(frozen=True, slots=True, kw_only=True)
class GrpoResult:
    """What a finished run reports."""

    model_folder: Path
    num_steps: int
    rewards: list[float | None]
    """Mean reward of every step."""
    logprob_gap_mean_abs: float
    """Largest of the steps' mean absolute differences between sampler and trainer."""
    logprob_gap_max_abs: float
    """Largest difference of any token."""
    questions: dict[str, Any]
    """Input, kept and dropped (by reason)."""


def train_grpo(
    config: GrpoConfig,
    policy: Policy | None = None,
    engine: RolloutEngine | None = None,
    progress: ProgressDisplay | None = None,
) -> GrpoResult:
    """Train, continue an interrupted training, or report a finished one.

    Args:
        config: The resolved recipe.
        policy: The model of `config.model`, if it is loaded already; it is trained in place.
        engine: A sampler to use instead of opening one; it stays open and ends with the final weights.
        progress: Where to show how far it is.
    """
    ranks = join_ranks(config.model)
    progress = progress if progress and ranks.is_first else SilentProgress()
    rewards = load_rewards(config.rewards)
    run = open_run("grpo", config, model=config.model, data=config.data, ranks=ranks)
    if run.result is not None:
        return GrpoResult(model_folder=run.model_folder, **run.result)

    policy = open_training_policy(config.model, config.dtype, policy=policy, checkpoint=run.checkpoint)
    with storing(policy, config):
        questions = load_questions(config.data, policy, progress=progress, choice_only=True, ranks=ranks)
    run.save_questions(questions.report())
    policy.train_vision(config.train_vision)
    optimizer = create_optimizer(policy, config)
    run.restore(optimizer)
    reference = open_policy(config.model, config.dtype) if config.kl_coefficient else None
    start_folder = run.checkpoint.model_folder if run.checkpoint else config.model.folder

    with (
        open_engine(
            config.sampler,
            policy,
            start_folder,
            engine=engine,
            max_model_len=longest_prompt(policy, questions.kept, config.data.system) + config.max_response_tokens,
            dtype=config.dtype,
            ranks=ranks,
        ) as sampler,
        progress.task("GRPO", total=config.steps, done=run.step) as bar,
    ):
        for step in range(run.step, config.steps):
            clock = Stopwatch()
            frames_before = count_frames_encoded(policy)
            with clock("encode"):
                chosen = choose_questions(questions.kept, config, step=step)
                (asked,), media = open_step(policy, [chosen], questions, ranks)
            prompts = [build_question_prompt(policy, question, config.data.system) for question in asked]
            with clock("rollout"), media.lend():
                drawn = draw_responses(sampler, prompts, config, step=step)
                sampler.sleep()
            with clock("reward"):
                answered = [
                    (question, prompt, outcome)
                    for question, prompt, outcome in zip(asked, prompts, drawn, strict=True)
                    if not isinstance(outcome, Refusal)
                ]
                groups = judge_groups(answered, rewards=rewards, advantage=config.advantage, ranks=ranks)
                refusals = [outcome for outcome in drawn if isinstance(outcome, Refusal)]
                if not groups:
                    raise TrainerError(f"the sampler refused every prompt of this step: {refusals[0].message}")
            with clock("update"):
                learning_rate = warmup_learning_rate(step, peak=config.learning_rate, warmup_steps=config.warmup_steps)
                update = update_policy(policy, optimizer, groups, config, learning_rate, media, reference, ranks)
            with clock("sync"):
                sampler.update_weights(policy)

            measured = rollout_metrics(groups) | update.metrics() | {"learning_rate": learning_rate}
            measured["frames_encoded"] = sum(ranks.exchange(count_frames_encoded(policy) - frames_before))
            measured["prompts_refused"] = dict(Counter(str(refusal.reason) for refusal in refusals))
            run.metrics.append(step + 1, measured | {"seconds": clock.seconds})
            for group in groups[: config.journal_groups]:
                run.rollouts.append(step + 1, describe_group(group))
            bar.advance(note=f"reward {measured['reward'] or 0:.3f}")
            if (step + 1) % config.checkpoint_every_steps == 0:
                run.save_checkpoint(step + 1, policy, optimizer)

    policy.freeze_vision()
    result: dict[str, Any] = summarise_steps(run.read_metrics()) | {"questions": questions.counts()}
    run.finish(policy, result)
    return GrpoResult(model_folder=run.model_folder, **result)


def choose_questions(questions: Sequence[Question], config: GrpoConfig, *, step: int) -> list[Question]:
    """A step's questions: every question once per epoch, in an order that each epoch shuffles anew."""
    orders: dict[int, list[Question]] = {}
    chosen: list[Question] = []
    for position in range(step * config.prompts_per_step, (step + 1) * config.prompts_per_step):
        epoch, place = divmod(position, len(questions))
        if epoch not in orders:
            orders[epoch] = list(questions)
            random.Random(derive_seed(config.seed, "grpo epoch", epoch)).shuffle(orders[epoch])
        chosen.append(orders[epoch][place])
    return chosen


def draw_responses(
    engine: RolloutEngine, prompts: Sequence[Prompt], config: GrpoConfig, *, step: int
) -> list[list[Rollout] | Refusal]:
    """G responses per prompt, or why there are none; the same again when the step is repeated."""
    settings = SamplingSettings(
        temperature=config.temperature,
        max_tokens=config.max_response_tokens,
        num_samples=config.group_size,
        seed=derive_seed(config.seed, "rollout", step),
    )
    return engine.generate(prompts, settings)


def update_policy(
    policy: Policy,
    optimizer: Optimizer,
    groups: Sequence[RolloutGroup],
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
    weights = dict(zip(map(id, judged), weigh_groups(judged, config), strict=True))
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
                        group_loss(group, scores, old[place], references.get(place), weights[place], config, statistics)
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
    config: GrpoConfig,
    statistics: TokenStatistics,
) -> Tensor:
    """A group's share in the loss of its step."""
    loss = scores.logprobs[0].new_zeros(())
    for index, (_, advantage) in enumerate(group.judged()):
        logprobs_R = scores.logprobs[index]
        policy_loss = clipped_policy_loss(
            logprobs_R, old_logprobs[index], advantage, clip_low=config.clip_low, clip_high=config.clip_high
        )
        losses_R, kl_R = policy_loss.losses, None
        if reference_logprobs is not None:
            kl_R = kl_divergence_k3(logprobs_R, reference_logprobs[index])
            losses_R = losses_R + config.kl_coefficient * kl_R
        loss = loss + weights[index] * losses_R.sum()
        statistics.add_response(is_clipped_R=policy_loss.is_clipped, entropies_R=scores.entropies[index], kl_R=kl_R)
    return loss


def weigh_groups(groups: Sequence[RolloutGroup], config: GrpoConfig) -> list[list[float]]:
    """The weights of `response_weights` over the whole step, cut into groups."""
    lengths = [[len(rollout.token_ids) for rollout, _ in group.judged()] for group in groups]
    flat = iter(
        response_weights(
            [length for of_group in lengths for length in of_group],
            config.aggregation,
            max_response_tokens=config.max_response_tokens,
        )
    )
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
