"""CoT-SFT: the model learns to generate the dataset's own reasoning and answers.

One video, or one tuple of media that several questions share, makes one packed row `[system + media | question 1 +
response 1 | question 2 + response 2 | …]`, so that the long prompt is computed once for all its questions. Only
responses are learned. The loss of a step is the mean over all response tokens of the step, whichever rows they are in.
Under torchrun every rank computes its share of some rows (`training.ranks`), and all make the same update.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any, TypeVar

import torch

from longrl_trainer.config.stages import SftConfig
from longrl_trainer.questions.loading import load_questions
from longrl_trainer.questions.question import Question
from longrl_trainer.questions.step_media import count_frames_encoded, open_step, storing, train_parts
from longrl_trainer.runs.folder import Run, open_run
from longrl_trainer.runs.progress import ProgressDisplay, SilentProgress
from longrl_trainer.seeds import derive_seed
from longrl_trainer.training.adapter_targets import refuse_unknown_targets
from longrl_trainer.training.adapters import dropping
from longrl_trainer.training.divergence import refuse_spike
from longrl_trainer.training.opening import (
    check_sharding,
    create_optimizer,
    open_training_policy,
    save_memory,
    share_rows,
)
from longrl_trainer.training.optimizer import cosine_learning_rate
from longrl_trainer.training.ranks import Ranks, join_ranks
from longrl_trainer.training.scoring import RowScoring
from longvideo_reason_data.records.answers import LETTERS, format_prompt, format_response
from longvideo_reason_data.records.record import QuestionRecord
from mrsp_engine.families.base import Policy
from mrsp_engine.layout import Branch
from mrsp_engine.rows import PromptGroup

ItemT = TypeVar("ItemT")


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


def train_sft(config: SftConfig, policy: Policy | None = None, progress: ProgressDisplay | None = None) -> SftResult:
    """Train, continue an interrupted training, or report a finished one.

    Args:
        config: The resolved recipe.
        policy: The model of `config.model`, if it is already loaded; it is trained in place.
        progress: Where to show progress.
    """
    ranks = join_ranks(config.model, config.parallel)
    check_sharding(config, ranks)
    refuse_unknown_targets(config.model.folder, config.lora)
    progress = progress if progress and ranks.is_first else SilentProgress()
    with open_run("sft", config, model=config.model, data=config.data, ranks=ranks) as run:
        result = run.result or _train(config, run, policy, progress, ranks)
        return SftResult(model_folder=run.model_folder, **result)


def _train(
    config: SftConfig, run: Run, policy: Policy | None, progress: ProgressDisplay, ranks: Ranks
) -> dict[str, Any]:
    """Run all remaining steps and save the final model; returns the report."""
    policy = open_training_policy(config.model, config.dtype, policy=policy, lora=config.lora, seed=config.seed)
    with storing(policy, config):
        questions = load_questions(
            config.data,
            policy,
            progress=progress,
            blind=config.blind,
            learn_responses=True,
            response_tokens=lambda record: len(response_ids(policy, record, config)),
            ranks=ranks,
        )
    run.save_questions(questions.report())
    train_parts(policy, config)
    save_memory(policy, config, ranks)
    optimizer = create_optimizer(policy, config)
    run.restore(optimizer)
    steps_per_epoch = len(plan_epoch(questions.kept, config, epoch=0))
    num_steps = config.epochs * steps_per_epoch
    run.require_length(num_steps)
    remark_schedule(run, config, steps_per_epoch)
    ranks = share_rows(config, policy, ranks, [group.lengths for group in first_groups(policy, questions.kept, config)])
    scoring = RowScoring.of(config, policy, ranks)
    plan: list[list[list[Question]]] = []
    losses = [loss for loss in run.read_series("loss") if loss is not None]
    started = perf_counter()

    with progress.task("SFT", total=num_steps, done=run.step) as bar, run.signals:
        for step in range(run.step, num_steps):
            step_started = perf_counter()
            epoch, step_of_epoch = divmod(step, steps_per_epoch)
            if not plan or step_of_epoch == 0:
                plan = plan_epoch(questions.kept, config, epoch=epoch)
            frames_before = count_frames_encoded(policy)
            shown, media = open_step(policy, hide_videos(plan[step_of_epoch], config, step=step), questions, ranks)
            groups = [pack_questions(policy, of_video, config) for of_video in shown]
            with media.lend(with_gradients=True), dropping(policy, config, step=step, ranks=ranks):
                loss = take_gradients(policy, groups, scoring)
            losses.append(loss)
            refuse_spike(losses, max_rise=config.max_loss_rise)
            media.backward()
            ranks.sum_gradients(policy.model)
            learning_rate = learning_rate_at(step, config, num_steps=num_steps)
            gradient_norm = optimizer.step(learning_rate)
            run.metrics.append(
                step + 1,
                {
                    "epoch": epoch,
                    "loss": loss,
                    "learning_rate": learning_rate,
                    "gradient_norm": gradient_norm,
                    "tokens": sum(map(count_scored_tokens, groups)),
                    "frames_encoded": sum(ranks.exchange(count_frames_encoded(policy) - frames_before)),
                    "seconds": perf_counter() - step_started,
                },
            )
            bar.advance(note=f"loss {loss:.3f}")
            run.end_step(step + 1, policy, optimizer, score=-loss)

    policy.freeze_vision()
    result: dict[str, Any] = {
        "num_steps": num_steps,
        "final_loss": run.read_metrics()[-1]["loss"],
        "questions": questions.counts(),
        "seconds": perf_counter() - started,
    }
    run.finish(policy, result)
    return result


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


def plan_epoch(questions: Sequence[Question], config: SftConfig, *, epoch: int) -> list[list[list[Question]]]:
    """Which questions share a row and which rows share a step, reshuffled in every epoch.

    Returns:
        Steps, each a list of rows, each a list of questions with the same media. Every question occurs once, and every
        epoch has the same number of steps.
    """
    order = random.Random(derive_seed(config.seed, "sft epoch", epoch))
    by_media: dict[tuple[str, ...], list[Question]] = {}
    for question in questions:
        by_media.setdefault(tuple(medium.key for medium in question.media), []).append(question)
    rows: list[list[Question]] = []
    for shown_alike in by_media.values():
        order.shuffle(shown_alike)
        rows += _chunks(shown_alike, config.questions_per_row)
    order.shuffle(rows)
    return _chunks(rows, config.rows_per_step)


def take_gradients(policy: Policy, groups: Sequence[PromptGroup], scoring: RowScoring) -> float:
    """The gradients of a step's loss, row by row; returns the loss, the mean over all response tokens."""
    num_tokens = sum(map(count_scored_tokens, groups))
    total = 0.0
    for turn in scoring.plan(groups):
        scores = scoring.score(policy, [groups[index] for index in turn.members], turn.num_passes)
        logprobs = [part for group in scores.groups for part in group.logprobs]
        total += scores.backward(-torch.cat(logprobs).sum() / num_tokens if logprobs else None)
    return math.fsum(scoring.ranks.exchange_between_data_ranks(total))


def first_groups(policy: Policy, questions: Sequence[Question], config: SftConfig) -> list[PromptGroup]:
    """The rows of the first step, which are typical of all."""
    first, *_ = plan_epoch(questions, config, epoch=0)
    return [pack_questions(policy, of_video, config) for of_video in first]


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
    response = policy.tokenizer.encode(format_response(record.reasoning, answer), add_special_tokens=False)
    return (*response, policy.end_token_ids[0])


def count_scored_tokens(group: PromptGroup) -> int:
    """Tokens of responses."""
    return sum(len(branch.token_ids) - branch.scored_from for branch in group.branches)


def _chunks(items: list[ItemT], size: int) -> list[list[ItemT]]:
    return [items[start : start + size] for start in range(0, len(items), size)]
