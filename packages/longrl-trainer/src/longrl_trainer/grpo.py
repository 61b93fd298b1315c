"""GRPO: the model answers questions, answers are compared within their group, better ones become more likely.

One step, read top to bottom in `_train`: draw G responses per question from the sampler, let the rewards judge them and
turn rewards into advantages (`rl.sampling`), minimise the objective, give the new weights to the sampler. Every pass
over a group computes its long prompt once. What is measured meanwhile is in `step_metrics`.

Under torchrun every rank runs the same loop (`training.ranks`): it samples and judges its share of the prompts and
computes its share of some rows, and all make the same update.
"""

import random
from collections import Counter
from collections.abc import Callable, Sequence, Sized
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longrl_trainer.config.stages import GrpoConfig
from longrl_trainer.errors import StoppedError
from longrl_trainer.evaluation.held_out import (
    accuracy_in,
    check_evaluation,
    evaluate_at_the_start,
    evaluate_if_due,
    open_evaluation,
)
from longrl_trainer.objectives.base import build_objective
from longrl_trainer.questions.feed import FeedSettings, QuestionFeed
from longrl_trainer.questions.loading import open_feed
from longrl_trainer.questions.order import Item, QuestionOrder
from longrl_trainer.questions.question import build_question_prompt
from longrl_trainer.questions.step_media import count_frames_encoded, storing
from longrl_trainer.rewards.registry import WeightedReward, judged_types, load_rewards
from longrl_trainer.rl.journaled_groups import describe_group
from longrl_trainer.rl.sampling import sample_step
from longrl_trainer.rl.stalling import StallWatch
from longrl_trainer.rl.step_metrics import count_sampled, rollout_metrics, summarise_steps
from longrl_trainer.rl.temporal_contrast import contrast_metrics, refuse_single_groups
from longrl_trainer.rl.update import PolicyUpdate
from longrl_trainer.runs.folder import Run, open_run
from longrl_trainer.runs.judging import REWARDS_NAME, open_rewards
from longrl_trainer.runs.progress import ProgressDisplay, SilentProgress
from longrl_trainer.runs.step_meter import StepMeter, Stopwatch
from longrl_trainer.seeds import derive_seed
from longrl_trainer.training.adapter_targets import refuse_unknown_targets
from longrl_trainer.training.divergence import refuse_collapse
from longrl_trainer.training.opening import (
    check_sampler,
    check_sharding,
    create_optimizer,
    open_engine,
    open_reference,
    open_training_policy,
    save_memory,
    share_rows,
)
from longrl_trainer.training.optimizer import TrainingOptimizer, warmup_learning_rate
from longrl_trainer.training.ranks import Ranks, join_ranks
from longrl_trainer.training.scoring import RowScoring
from mrsp_engine.families.base import Policy
from mrsp_engine.layout import GroupLengths
from mrsp_engine.rollout.base import RolloutEngine


@dataclass(frozen=True, slots=True, kw_only=True)
class GrpoResult:
    """The report of a finished run."""

    model_folder: Path
    num_steps: int
    rewards: list[float | None]
    """Mean reward of every step."""
    logprob_gap_mean_abs: float
    """Largest of the steps' mean absolute differences between sampler and trainer."""
    logprob_gap_max_abs: float
    """Largest difference for any token."""
    questions: dict[str, Any]
    """Number of questions: input, kept and dropped (by reason)."""


def train_grpo(
    config: GrpoConfig,
    policy: Policy | None = None,
    engine: RolloutEngine | None = None,
    progress: ProgressDisplay | None = None,
) -> GrpoResult:
    """Train, continue an interrupted training, or report a finished one.

    Args:
        config: The resolved recipe.
        policy: The model of `config.model`, if it is already loaded; it is trained in place.
        engine: A sampler to use instead of opening one; it stays open and ends with the final weights.
        progress: Where to show progress.
    """
    ranks = join_ranks(config.model, config.parallel)
    progress = progress if progress and ranks.is_first else SilentProgress()
    check_sharding(config, ranks)
    check_sampler(config.sampler, ranks)
    check_evaluation(config)
    rewards = load_rewards(config.rewards)
    refuse_unknown_targets(config.model.folder, config.lora)
    refuse_single_groups(config)
    with open_run("grpo", config, model=config.model, data=config.data, ranks=ranks) as run:
        result = run.result or _train(config, run, rewards, policy, engine, progress, ranks)
        return GrpoResult(model_folder=run.model_folder, **result)


def _train(
    config: GrpoConfig,
    run: Run,
    rewards: Sequence[WeightedReward],
    policy: Policy | None,
    engine: RolloutEngine | None,
    progress: ProgressDisplay,
    ranks: Ranks,
) -> dict[str, Any]:
    """Run all remaining steps and save the final model; returns the report."""
    run.require_length(config.steps)
    with ExitStack() as opened:
        opened.enter_context(open_rewards(rewards, run.folder / REWARDS_NAME, ranks))
        policy = open_training_policy(config, ranks, policy=policy)
        opened.enter_context(storing(policy, config))
        feed = opened.enter_context(open_questions(config, run, policy, rewards, progress, ranks))
        evaluation = opened.enter_context(open_evaluation(config, run, policy, progress, ranks))
        prompts = [build_question_prompt(policy, item, config.data.system) for (item,) in feed.preview()]
        responses = (config.max_response_tokens,) * config.group_size
        ranks = share_rows(config, policy, ranks, [GroupLengths(prompt.length, responses) for prompt in prompts])
        save_memory(policy, config, ranks)
        optimizer = create_optimizer(policy, config, ranks)
        run.restore(optimizer)
        update = create_update(config, policy, optimizer, ranks)
        rewards_so_far = run.read_series("reward")
        sampler = opened.enter_context(
            open_engine(
                config.sampler,
                policy,
                config.model.folder,
                is_trained=run.step > 0,
                engine=engine,
                max_model_len=feed.most_tokens,
                dtype=config.dtype,
                ranks=ranks,
                allow_pickle_weights=config.model.allow_pickle_weights,
            )
        )
        meter, stalls = StepMeter(config, policy, ranks, sampler), StallWatch(config, progress)
        bar = opened.enter_context(progress.task("GRPO", total=config.steps, done=run.step))
        opened.enter_context(run.signals)
        evaluate_at_the_start(evaluation, sampler, policy, run)
        for step in range(run.step, config.steps):
            clock, frames_before = Stopwatch(), count_frames_encoded(policy)
            meter.begin()
            try:
                sampled = sample_step(feed, sampler, policy, rewards, update.objective, config, ranks, clock, step=step)
            except StoppedError:  # all ranks: a judge is down
                run.save(step, policy, optimizer)
                raise
            frames_before += sampled.frames_stored
            measured = rollout_metrics(sampled.groups)
            rewards_so_far.append(measured["reward"])
            refuse_collapse(rewards_so_far, min_share=config.min_reward_share)
            with clock("update"):
                learning_rate = warmup_learning_rate(step, peak=config.learning_rate, warmup_steps=config.warmup_steps)
                statistics = update.run(
                    sampled.trained, sampled.media, learning_rate, num_recorded=config.journal_groups
                )
            with clock("sync"):
                sampler.update_weights(policy)
            measured |= statistics.metrics() | {"learning_rate": learning_rate}
            measured["frames_encoded"] = sum(ranks.exchange(count_frames_encoded(policy) - frames_before))
            measured["prompts_refused"] = dict(Counter(str(refusal.reason) for refusal in sampled.refusals))
            measured |= {"rounds": sampled.num_rounds, "groups_trained": len(sampled.trained)}
            if config.parts.temporal_weight:
                measured["temporal"] = contrast_metrics(sampled.contrasts)
            measured |= meter.figures(statistics.work, clock.seconds, num_sampled=count_sampled(sampled.groups))
            measured |= evaluate_if_due(evaluation, sampler, policy, clock, step=step + 1)
            run.metrics.append(step + 1, measured | {"seconds": clock.seconds})
            for place, group in enumerate(sampled.trained[: config.journal_groups]):
                gaps = statistics.token_gaps.get(place, ())
                run.rollouts.append(step + 1, describe_group(group, policy.tokenizer, gaps))
            stalls.show(step + 1, measured, bar)
            run.end_step(step + 1, policy, optimizer, score=measured["reward"], accuracy=accuracy_in(measured))

    policy.freeze_vision()
    result: dict[str, Any] = summarise_steps(run.read_metrics()) | {"questions": feed.counts()}
    run.finish(policy, result)
    return result


def open_questions(
    config: GrpoConfig,
    run: Run,
    policy: Policy,
    rewards: Sequence[WeightedReward],
    progress: ProgressDisplay,
    ranks: Ranks,
) -> QuestionFeed:
    """The questions that the rewards can judge, step by step."""
    return open_feed(
        FeedSettings(
            data=config.data, prefetch_steps=config.prefetch_steps, num_steps=config.steps, is_blind=config.blind
        ),
        policy,
        run,
        order=lambda candidates: order_questions(candidates, config),
        progress=progress,
        judged_types=judged_types(rewards),
        response_tokens=lambda _: config.max_response_tokens,
        sampler=config.sampler,
        ranks=ranks,
    )


def create_update(
    config: GrpoConfig,
    policy: Policy,
    optimizer: TrainingOptimizer,
    ranks: Ranks,
    load_reference: Callable[[GrpoConfig, Ranks], Policy] = open_reference,
) -> PolicyUpdate:
    """The policy update that the recipe specifies; loads the reference if the objective needs one beside the policy."""
    objective = build_objective(config)
    reference = None
    if objective.needs_reference:
        reference = load_reference(config, ranks) if policy.adapters is None else policy
    return PolicyUpdate(
        policy=policy,
        optimizer=optimizer,
        objective=objective,
        scoring=RowScoring.of(config, policy, ranks, temperature=config.temperature),
        reference=reference,
        num_updates=config.updates_per_batch,
        max_logprob_gap=config.logprob_gap_limit,
    )


def order_questions(candidates: Sized, config: GrpoConfig) -> QuestionOrder:
    """Every question once per epoch, in an order that is reshuffled for each epoch."""

    def plan_epoch(epoch: int) -> list[Item]:
        places = list(range(len(candidates)))
        random.Random(derive_seed(config.seed, "grpo epoch", epoch)).shuffle(places)
        return [(place,) for place in places]

    return QuestionOrder(plan_epoch, config.prompts_per_step)
