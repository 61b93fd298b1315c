"""Reinforcement learning of generation: samples are drawn, judged and compared, and better ones become more likely.

One step, read top to bottom in `_train`: draw G samples per prompt, let the rewards judge their pictures or clips,
compare each group, and minimise the objective along the reverse or the forward process. Held-out prompts are drawn
before and after. It runs in one process.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from longrl_omni.generation.comparison import WeightedTerm, compare_samples
from longrl_omni.generation.config.recipes import GenerateGrpoConfig
from longrl_omni.generation.evaluation import as_requests, evaluate_samples, kind_of_samples
from longrl_omni.generation.media_files import write_media
from longrl_omni.generation.policies.base import GenerationPolicy, load_generation_policy, read_prompts_for
from longrl_omni.generation.policies.trained_weights import TrainedWeights
from longrl_omni.generation.prompts import prompts_of_step, read_prompts
from longrl_omni.generation.rewards.base import name_kind
from longrl_omni.generation.rewards.judging import (
    JudgedSamples,
    judge_samples,
    load_generation_rewards,
    refuse_other_kinds,
)
from longrl_omni.generation.runs import GenerationRun, choose_device, open_generation_run
from longrl_omni.generation.sampling.trajectories import SampledBatch, SamplerSettings, draw_samples
from longrl_omni.generation.sampling.windows import NoisyWindow, choose_window
from longrl_omni.generation.updates import GenerationUpdate
from longrl_trainer.objectives.advantages import has_spread
from longrl_trainer.rewards.registry import WeightedReward
from longrl_trainer.runs.progress import ProgressDisplay, SilentProgress
from longrl_trainer.runs.step_meter import Stopwatch
from longrl_trainer.seeds import derive_seed
from longrl_trainer.training.optimizer import Optimizer, warmup_learning_rate

BEFORE, AFTER = "before", "after"


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateGrpoResult:
    """The report of a finished run."""

    model_folder: Path
    num_steps: int
    before: dict[str, float | None]
    """Mean of every reward over the held-out samples before training."""
    after: dict[str, float | None]
    rewards: list[float | None]
    """Mean reward of every step."""
    held_out_rewards: list[float | None]
    """Mean held-out reward of every step."""
    ratio_error: float
    """Largest of the steps' differences between sampler and policy before the first update."""
    prompts_encoded: int
    """How many prompts were encoded, each of them once."""


def train_generation(
    config: GenerateGrpoConfig, policy: GenerationPolicy | None = None, progress: ProgressDisplay | None = None
) -> GenerateGrpoResult:
    """Train, continue an interrupted training, or report a finished one.

    Args:
        config: The resolved recipe.
        policy: The model of `config.model`, if it is already loaded; it is trained in place.
        progress: Where to show progress.
    """
    rewards = load_generation_rewards(config.rewards)
    if config.held_out_reward not in config.rewards:
        (held_out,) = load_generation_rewards({config.held_out_reward: 1.0})
        rewards = [*rewards, WeightedReward(name=held_out.name, reward=held_out.reward, weight=0.0)]
    with open_generation_run(config) as run:
        result = run.result or _train(config, run, rewards, policy, progress or SilentProgress())
        return GenerateGrpoResult(model_folder=run.model_folder, **result)


def _train(
    config: GenerateGrpoConfig,
    run: GenerationRun,
    rewards: Sequence[WeightedReward],
    policy: GenerationPolicy | None,
    progress: ProgressDisplay,
) -> dict[str, Any]:
    """Run all remaining steps and save the final model; returns the report."""
    for setting in ("prompts", "held_out_prompts"):  # before a model is loaded
        read_prompts(getattr(config, setting), setting)
    policy = policy or load_generation_policy(
        config.model.folder,
        dtype=getattr(torch, config.model.dtype),
        device=choose_device(config.model.device),
        settings=config.sampling,
    )
    refuse_other_kinds(rewards, kind_of_samples(policy))
    prompts = read_prompts_for(policy, config.prompts, "prompts")
    held_out_prompts = read_prompts_for(policy, config.held_out_prompts, "held_out_prompts")
    weights = TrainedWeights(
        policy.transformer,
        config.lora,
        seed=config.seed,
        keeps_average=config.needs_average,
        keeps_smoothed=config.final_average_decay > 0,
    )
    optimizer = Optimizer(
        policy.transformer,
        weight_decay=config.weight_decay,
        max_gradient_norm=config.max_gradient_norm,
        name=config.optimizer,
    )
    update = GenerationUpdate(policy=policy, weights=weights, optimizer=optimizer, config=config)

    _evaluate(BEFORE, config, run, rewards, policy, held_out_prompts)  # of a run that goes on, this is done
    run.restore(optimizer, weights)
    with progress.task(config.algorithm, total=config.steps, done=run.step) as bar, run.signals:
        for step in range(run.step, config.steps):
            clock = Stopwatch()
            window = choose_window(config, step)
            with clock("sampling"):
                chosen = prompts_of_step(prompts, step=step, num_prompts=config.prompts_per_step, seed=config.seed)
                batches = _draw(config, policy, weights, chosen, window, step)
                media = torch.cat([policy.decode(batch.clean) for batch in batches])
            with clock("rewards"):
                by_sample = [prompt for batch in batches for prompt in batch.prompts]
                judged = judge_samples(rewards, as_requests(policy, by_sample, media))
                advantages = _compare(config, judged)
            with clock("update"):
                learning_rate = warmup_learning_rate(step, peak=config.learning_rate, warmup_steps=config.warmup_steps)
                statistics = update.run(
                    batches, advantages, window.trained_steps, step=step, learning_rate=learning_rate
                )
            measured = _describe(config, judged) | statistics.metrics()
            measured |= {"learning_rate": learning_rate, "trained_steps": list(window.trained_steps)}
            run.metrics.append(step + 1, measured | {"seconds": clock.seconds})
            bar.advance(note=f"reward {measured['reward'] or 0:.3f}")
            run.end_step(step + 1, policy.transformer, optimizer, weights, score=measured["reward"])

    weights.end_training()
    _evaluate(AFTER, config, run, rewards, policy, held_out_prompts)
    if config.lora.rank is not None:
        policy.save_adapters(run.adapter_folder)
    weights.merge()
    policy.save(run.model_folder)
    journal = run.metrics.read()
    result: dict[str, Any] = {
        "num_steps": config.steps,
        **{name: run.read_evaluations()[name] for name in (BEFORE, AFTER)},
        "rewards": [line["reward"] for line in journal],
        "held_out_rewards": [line["held_out_reward"] for line in journal],
        "ratio_error": max((line["ratio_error"] for line in journal), default=0.0),
        "prompts_encoded": policy.num_encoded,
    }
    run.finish(result)
    return result


def _evaluate(
    name: str,
    config: GenerateGrpoConfig,
    run: GenerationRun,
    rewards: Sequence[WeightedReward],
    policy: GenerationPolicy,
    prompts: Sequence[str],
) -> None:
    """Evaluate on held-out prompts, unless that is done."""
    evaluations = run.read_evaluations()
    if name in evaluations:
        return
    found = evaluate_samples(
        policy,
        prompts,
        config.sampling,
        rewards,
        num_per_prompt=config.evaluation_samples,
        seed=derive_seed(config.seed, "held-out"),
    )
    kind = name_kind(kind_of_samples(policy))
    write_media(list(found.media), policy.frames_per_second, run.folder / kind / name)
    run.save_evaluations(evaluations | {name: found.judged.means()})


def _draw(
    config: GenerateGrpoConfig,
    policy: GenerationPolicy,
    weights: TrainedWeights,
    prompts: Sequence[str],
    window: NoisyWindow,
    step: int,
) -> list[SampledBatch]:
    """All samples of a step, in batches of whole groups."""
    parts = config.parts
    settings = SamplerSettings(
        levels=policy.noise_levels(config.sampling.steps),
        noise=parts.noise,
        noise_scale=parts.noise_scale,
        noisy_steps=window.noisy_steps,
        # A forward algorithm trains no step; one is kept to compare sampler and policy by.
        kept_steps=window.trained_steps if config.is_reverse else (0,),
        guidance=config.sampling.guidance,
        shares_initial_noise=parts.initial_noise == "shared",
        reduction=parts.reduction,
    )
    per_pass = config.sampling.samples_per_pass // config.group_size
    batches: list[SampledBatch] = []
    for start in range(0, len(prompts), per_pass):
        of_batch = range(start, min(start + per_pass, len(prompts)))
        chosen = [prompts[place] for place in of_batch]
        seeds = [derive_seed(config.seed, "noise", step, place) for place in of_batch]

        def draw(chosen: Sequence[str] = chosen, seeds: Sequence[int] = seeds) -> SampledBatch:
            return draw_samples(policy, chosen, settings, group_size=config.group_size, seeds=seeds)

        if parts.loss == "nft":
            with weights.as_average():
                batches.append(draw())
        else:
            batches.append(draw())
    return batches


def _compare(config: GenerateGrpoConfig, judged: JudgedSamples) -> list[float | None]:
    terms = [
        WeightedTerm(values=judged.values(name), weight=weight) for name, weight in judged.weights.items() if weight
    ]
    return compare_samples(
        terms,
        judged.totals(),
        group_size=config.group_size,
        scope=config.parts.deviation_scope,
        mixing=config.parts.reward_mixing,
    )


def _describe(config: GenerateGrpoConfig, judged: JudgedSamples) -> dict[str, Any]:
    """The rewards of a step, for the journal."""
    means = judged.means()
    totals = judged.totals()
    known = [total for total in totals if total is not None]
    groups = [tuple(totals[start : start + config.group_size]) for start in range(0, len(totals), config.group_size)]
    return {
        "reward": sum(known) / len(known) if known else None,
        "held_out_reward": means[config.held_out_reward],
        "rewards": means,
        "not_judged": len(totals) - len(known),
        "groups_without_spread": sum(not has_spread(group) for group in groups),
    }
