"""CoT-SFT: the model learns to generate the dataset's own reasoning and answers.

One video, or one tuple of media that several questions share, makes one packed row `[system + media | question 1 +
response 1 | question 2 + response 2 | …]`, so that the long prompt is computed once for all its questions. Only
responses are learned. The loss of a step is the mean over all response tokens of the step, whichever rows they are in.
Under torchrun every rank computes its share of some rows (`training.ranks`), and all make the same update.
"""

import math
import random
from collections.abc import Hashable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from longrl_trainer.config.stages import SftConfig
from longrl_trainer.evaluation.held_out import (
    accuracy_in,
    check_evaluation,
    evaluate_at_the_start,
    evaluate_if_due,
    open_evaluation,
    open_sleeping_sampler,
)
from longrl_trainer.questions.candidates import Candidates
from longrl_trainer.questions.feed import FeedSettings, QuestionFeed
from longrl_trainer.questions.loading import open_feed
from longrl_trainer.questions.order import Item, QuestionOrder
from longrl_trainer.questions.question import Question
from longrl_trainer.questions.step_media import count_frames_encoded, open_step, storing
from longrl_trainer.runs.folder import Run, open_run
from longrl_trainer.runs.progress import ProgressDisplay, SilentProgress
from longrl_trainer.runs.step_meter import StepMeter, Stopwatch
from longrl_trainer.seeds import derive_seed
from longrl_trainer.training.adapter_targets import refuse_unknown_targets
from longrl_trainer.training.adapters import dropping
from longrl_trainer.training.divergence import refuse_spike
from longrl_trainer.training.opening import (
    check_sampler,
    check_sharding,
    create_optimizer,
    open_training_policy,
    save_memory,
    share_rows,
)
from longrl_trainer.training.optimizer import cosine_learning_rate
from longrl_trainer.training.ranks import Ranks, join_ranks
from longrl_trainer.training.scoring import RowScoring, StepWork
from longvideo_reason_data.records.answers import LETTERS, format_prompt, format_response
from longvideo_reason_data.records.record import QuestionRecord
from mrsp_engine.families.base import Policy
from mrsp_engine.layout import Branch
from mrsp_engine.rollout.base import RolloutEngine
from mrsp_engine.rows import PromptGroup


@dataclass(frozen=True, slots=True, kw_only=True)
class SftResult:
    """The report of a finished run."""

    model_folder: Path
    num_steps: int
    final_loss: float
    questions: dict[str, Any]
    """Number of questions: input, kept and dropped (by reason)."""
    seconds: float
    """Time spent in steps since the run was last started."""


def train_sft(
    config: SftConfig,
    policy: Policy | None = None,
    progress: ProgressDisplay | None = None,
    engine: RolloutEngine | None = None,
) -> SftResult:
    """Train, continue an interrupted training, or report a finished one.

    Args:
        config: The resolved recipe.
        policy: The model of `config.model`, if it is already loaded; it is trained in place.
        progress: Where to show progress.
        engine: A sampler to evaluate with instead of opening one; it stays open.
    """
    ranks = join_ranks(config.model, config.parallel)
    check_sharding(config, ranks)
    check_sampler(config.sampler, ranks)
    check_evaluation(config)
    refuse_unknown_targets(config.model.folder, config.lora)
    progress = progress if progress and ranks.is_first else SilentProgress()
    with open_run("sft", config, model=config.model, data=config.data, ranks=ranks) as run:
        result = run.result or _train(config, run, policy, engine, progress, ranks)
        return SftResult(model_folder=run.model_folder, **result)


def _train(
    config: SftConfig,
    run: Run,
    policy: Policy | None,
    engine: RolloutEngine | None,
    progress: ProgressDisplay,
    ranks: Ranks,
) -> dict[str, Any]:
    """Run all remaining steps and save the final model; returns the report."""
    policy = open_training_policy(config, ranks, policy=policy)
    with ExitStack() as opened:
        opened.enter_context(storing(policy, config))
        feed = opened.enter_context(open_questions(config, run, policy, progress, ranks))
        evaluation = opened.enter_context(open_evaluation(config, run, policy, progress, ranks))
        save_memory(policy, config, ranks)
        optimizer = create_optimizer(policy, config, ranks)
        run.restore(optimizer)
        num_steps = config.epochs * feed.order.steps_per_epoch
        run.require_length(num_steps)
        remark_schedule(run, config, feed.order.steps_per_epoch)
        first = [pack_questions(policy, of_video, config) for of_video in feed.preview()]
        ranks = share_rows(config, policy, ranks, [group.lengths for group in first])
        scoring = RowScoring.of(config, policy, ranks)
        losses = [loss for loss in run.read_series("loss") if loss is not None]
        sampler = None
        if evaluation is not None:
            sampler = opened.enter_context(open_sleeping_sampler(config, run, policy, engine, ranks))
        step, started, meter = run.step, perf_counter(), StepMeter(config, policy, ranks)
        bar = opened.enter_context(progress.task("SFT", total=num_steps, done=step))
        opened.enter_context(run.signals)
        evaluate_at_the_start(evaluation, sampler, policy, run, is_asleep=True)
        while True:
            clock = Stopwatch()
            meter.begin()
            with clock("encode"):
                taken = feed.take(step)
                if not taken.rows:
                    break
                frames_before = count_frames_encoded(policy)
                shown, media = open_step(policy, hide_videos(taken.rows, config, step=step), taken.plans, ranks)
            groups = [pack_questions(policy, of_video, config) for of_video in shown]
            with clock("update"):
                with media.lend(with_gradients=True), dropping(policy, config, step=step, ranks=ranks):
                    loss = take_gradients(policy, groups, scoring)
                losses.append(loss)
                refuse_spike(losses, max_rise=config.max_loss_rise)
                media.backward()
                ranks.sum_gradients(policy)
                # Dropped questions make a run shorter, not its schedule: it goes by the place in the data.
                place = feed.order.place_in_schedule(taken.selection)
                learning_rate = learning_rate_at(place, config, num_steps=num_steps)
                gradient_norm = optimizer.step(learning_rate)
            step += 1
            measured: dict[str, Any] = {
                "epoch": taken.selection.first.epoch,
                "loss": loss,
                "learning_rate": learning_rate,
                "gradient_norm": gradient_norm,
                "tokens": sum(map(count_scored_tokens, groups)),
                "frames_encoded": sum(ranks.exchange(count_frames_encoded(policy) - frames_before)),
            }
            measured |= meter.figures(count_work(groups, scoring, policy), clock.seconds)
            measured |= evaluate_if_due(evaluation, sampler, policy, clock, step=step, is_asleep=True)
            run.metrics.append(step, measured | {"seconds": clock.seconds})
            bar.advance(note=f"loss {loss:.3f}")
            run.end_step(step, policy, optimizer, score=-loss, accuracy=accuracy_in(measured))

    policy.freeze_vision()
    result: dict[str, Any] = {
        "num_steps": step,
        "final_loss": run.read_metrics()[-1]["loss"],
        "questions": feed.counts(),
        "seconds": perf_counter() - started,
    }
    run.finish(policy, result)
    return result


def open_questions(
    config: SftConfig, run: Run, policy: Policy, progress: ProgressDisplay, ranks: Ranks
) -> QuestionFeed:
    """The questions whose responses can be learned, step by step."""
    return open_feed(
        FeedSettings(data=config.data, prefetch_steps=config.prefetch_steps, is_blind=config.blind),
        policy,
        run,
        order=lambda candidates: order_rows(candidates, config),
        progress=progress,
        learn_responses=True,
        response_tokens=lambda record: len(response_ids(policy, record, config)),
        ranks=ranks,
    )


def learning_rate_at(step: int, config: SftConfig, *, num_steps: int) -> float:
    """The learning rate of a step (counted from 0) of a run with `num_steps` steps."""
    return cosine_learning_rate(
        step,
        num_steps=num_steps,
        peak=config.learning_rate,
        warmup_steps=round(config.warmup_fraction * num_steps),
        min_learning_rate_fraction=config.min_learning_rate_fraction,
    )


def remark_schedule(run: Run, config: SftConfig, steps_per_epoch: int) -> None:
    """Report if the completed steps had other learning rates than in a run started with the current length."""
    if run.lengthened is None:
        return
    was, now = run.lengthened.was * steps_per_epoch, config.epochs * steps_per_epoch
    for step in range(run.step):
        before, after = (learning_rate_at(step, config, num_steps=num_steps) for num_steps in (was, now))
        if before != after:
            run.remark(
                f"step {step + 1} had the learning rate of a run of {was} steps, {before:.3g}; in one of {now} it is "
                f"{after:.3g}, so the result is not that of a run started with {config.epochs} epochs"
            )
            return


def order_rows(candidates: Candidates, config: SftConfig) -> QuestionOrder:
    """Rows of questions about the same media, reshuffled in every epoch; each question is seen once in each epoch."""
    media = [() if config.blind else tuple((m.kind, m.digest) for m in of_one) for of_one in candidates.media]
    return QuestionOrder(lambda epoch: plan_rows(media, config, epoch=epoch), config.rows_per_step, config.epochs)


def plan_rows(media: Sequence[Hashable], config: SftConfig, *, epoch: int) -> list[Item]:
    """Which questions share a row, and the order of the rows in an epoch.

    Args:
        media: What identifies the media of each question.
        config: The recipe.
        epoch: The epoch, from 0; every one has equally many rows.
    """
    order = random.Random(derive_seed(config.seed, "sft epoch", epoch))
    by_media: dict[Hashable, list[int]] = {}
    for place, shown in enumerate(media):
        by_media.setdefault(shown, []).append(place)
    rows: list[Item] = []
    for shown_alike in by_media.values():
        order.shuffle(shown_alike)
        size = config.questions_per_row
        rows += [tuple(shown_alike[start : start + size]) for start in range(0, len(shown_alike), size)]
    order.shuffle(rows)
    return rows


def take_gradients(policy: Policy, groups: Sequence[PromptGroup], scoring: RowScoring) -> float:
    """The gradients of a step's loss, row by row; returns the loss, the mean over all response tokens."""
    num_tokens = sum(map(count_scored_tokens, groups))
    total = 0.0
    for turn in scoring.plan(groups):
        scores = scoring.score(policy, [groups[index] for index in turn.members], turn.num_passes)
        logprobs = [part for group in scores.groups for part in group.logprobs]
        total += scores.backward(-torch.cat(logprobs).sum() / num_tokens if logprobs else None)
    return math.fsum(scoring.ranks.exchange_between_data_ranks(total))


def count_work(groups: Sequence[PromptGroup], scoring: RowScoring, policy: Policy) -> StepWork:
    """What a step computes."""
    shape, has_adapters = scoring.costs.shape, policy.adapters is not None
    return StepWork.of(scoring.plan(groups), shape, num_trained=1, has_adapters=has_adapters)


def hide_videos(rows: Sequence[Sequence[Question]], config: SftConfig, *, step: int) -> list[list[Question]]:
    """Remove the media from some rows, different ones in each step."""
    blindness = random.Random(derive_seed(config.seed, "sft blind", step))
    return [
        [replace(question, media=()) for question in row] if blindness.random() < config.blind_fraction else [*row]
        for row in rows
    ]


def pack_questions(policy: Policy, questions: Sequence[Question], config: SftConfig) -> PromptGroup:
    """Tokenise questions with the same media: the common part once, then question and response of each."""
    prompt, tail_of = policy.build_shared_prompt(questions[0].media, system=config.data.system)
    branches: list[Branch] = []
    for question in questions:
        record = question.record
        tail = tail_of(format_prompt(record.question, record.options))
        token_ids = (*tail, *response_ids(policy, record, config))
        branches.append(Branch(token_ids=token_ids, scored_from=len(tail)))
    return PromptGroup(prompt=prompt, branches=branches)


def response_ids(policy: Policy, record: QuestionRecord, config: SftConfig) -> tuple[int, ...]:
    """The tokens of a response to learn, including the end token."""
    answer = record.answer
    if config.answer_form == "text" and record.options:
        answer = record.options[LETTERS.index(record.answer)]
    return (*policy.tokenise(format_response(record.reasoning, answer)), policy.end_token_ids[0])


def count_scored_tokens(group: PromptGroup) -> int:
    """Tokens of responses."""
    return sum(len(branch.token_ids) - branch.scored_from for branch in group.branches)
