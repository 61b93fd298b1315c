"""Pictures or clips for held-out prompts, without noise in the steps, and what all rewards say about them.

The noise that they start from depends on the seed alone, so those before and after training can be compared one by
one.

Shape legend: B samples, F frames of a clip, 3 colour channels, H and W pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from longrl_omni.generation.config.recipes import SamplingSection
from longrl_omni.generation.policies.base import GenerationPolicy
from longrl_omni.generation.rewards.base import ClipRequest, PictureRequest, SampleRequest
from longrl_omni.generation.rewards.judging import JudgedSamples, judge_samples
from longrl_omni.generation.sampling.trajectories import SamplerSettings, draw_samples
from longrl_trainer.rewards.registry import WeightedReward
from longrl_trainer.seeds import derive_seed


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EvaluatedSamples:
    """Samples and their judgements.

    Attributes:
        prompts: The prompt of every sample.
        media: The pictures [B, 3, H, W] or clips [B, F, 3, H, W], with values from 0 to 1.
        judged: What the rewards say.
    """

    prompts: Sequence[str]
    media: Tensor
    judged: JudgedSamples


def draw_media(
    policy: GenerationPolicy, prompts: Sequence[str], sampling: SamplingSection, *, num_per_prompt: int, seed: int
) -> tuple[list[str], Tensor]:
    """The prompts and the pictures or clips of so many samples per prompt, one prompt after the other."""
    settings = SamplerSettings(levels=policy.noise_levels(sampling.steps), guidance=sampling.guidance)
    by_sample: list[str] = []
    media: list[Tensor] = []
    per_pass = max(1, sampling.samples_per_pass // num_per_prompt)
    for start in range(0, len(prompts), per_pass):
        chosen = prompts[start : start + per_pass]
        seeds = [derive_seed(seed, "picture", start + place) for place in range(len(chosen))]
        batch = draw_samples(policy, chosen, settings, group_size=num_per_prompt, seeds=seeds)
        by_sample += batch.prompts
        media.append(policy.decode(batch.clean))
    return by_sample, torch.cat(media)


def evaluate_samples(
    policy: GenerationPolicy,
    prompts: Sequence[str],
    sampling: SamplingSection,
    rewards: Sequence[WeightedReward],
    *,
    num_per_prompt: int,
    seed: int,
) -> EvaluatedSamples:
    """Draw samples and let the rewards judge them."""
    by_sample, media = draw_media(policy, prompts, sampling, num_per_prompt=num_per_prompt, seed=seed)
    judged = judge_samples(rewards, as_requests(policy, by_sample, media))
    return EvaluatedSamples(prompts=by_sample, media=media, judged=judged)


def kind_of_samples(policy: GenerationPolicy) -> type[SampleRequest]:
    """What a reward is asked about samples of a model."""
    return PictureRequest if policy.frames_per_second is None else ClipRequest


def as_requests(policy: GenerationPolicy, prompts: Sequence[str], media: Tensor) -> list[SampleRequest]:
    """The questions to a reward about pictures [B, 3, H, W] or clips [B, F, 3, H, W] of a model."""
    rate = policy.frames_per_second
    return [
        PictureRequest(prompt=prompt, picture=medium)
        if rate is None
        else ClipRequest(prompt=prompt, clip=medium, frames_per_second=rate)
        for prompt, medium in zip(prompts, media, strict=True)
    ]
