"""Pictures for held-out prompts, without noise in the steps, and what all rewards say about them.

The noise that they start from depends on the seed alone, so pictures before and after training can be compared one by
one.

Shape legend: B samples, 3 colour channels, H and W pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from longrl_omni.generation.config.recipes import SamplingSection
from longrl_omni.generation.policies.base import GenerationPolicy
from longrl_omni.generation.rewards.base import PictureRequest
from longrl_omni.generation.rewards.judging import JudgedPictures, judge_pictures
from longrl_omni.generation.sampling.trajectories import SamplerSettings, draw_samples
from longrl_trainer.rewards.registry import WeightedReward
from longrl_trainer.seeds import derive_seed


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EvaluatedPictures:
    """Pictures and their judgements.

    Attributes:
        prompts: The prompt of every picture.
        pictures: The pictures, with values from 0 to 1.
        judged: What the rewards say.
    """

    prompts: Sequence[str]
    pictures: Tensor
    judged: JudgedPictures


def draw_pictures(
    policy: GenerationPolicy, prompts: Sequence[str], sampling: SamplingSection, *, num_per_prompt: int, seed: int
) -> tuple[list[str], Tensor]:
    """The prompts and the pictures [B, 3, H, W] of so many samples per prompt, one prompt after the other."""
    settings = SamplerSettings(levels=policy.noise_levels(sampling.steps), guidance=sampling.guidance)
    by_sample: list[str] = []
    pictures: list[Tensor] = []
    per_pass = max(1, sampling.samples_per_pass // num_per_prompt)
    for start in range(0, len(prompts), per_pass):
        chosen = prompts[start : start + per_pass]
        seeds = [derive_seed(seed, "picture", start + place) for place in range(len(chosen))]
        batch = draw_samples(policy, chosen, settings, group_size=num_per_prompt, seeds=seeds)
        by_sample += batch.prompts
        pictures.append(policy.decode(batch.clean))
    return by_sample, torch.cat(pictures)


def evaluate_pictures(
    policy: GenerationPolicy,
    prompts: Sequence[str],
    sampling: SamplingSection,
    rewards: Sequence[WeightedReward],
    *,
    num_per_prompt: int,
    seed: int,
) -> EvaluatedPictures:
    """Draw pictures and let the rewards judge them."""
    by_sample, pictures_B3HW = draw_pictures(policy, prompts, sampling, num_per_prompt=num_per_prompt, seed=seed)
    judged = judge_pictures(rewards, as_requests(by_sample, pictures_B3HW))
    return EvaluatedPictures(prompts=by_sample, pictures=pictures_B3HW, judged=judged)


def as_requests(prompts: Sequence[str], pictures_B3HW: Tensor) -> list[PictureRequest]:
    """What a reward is asked about pictures."""
    return [
        PictureRequest(prompt=prompt, picture=picture) for prompt, picture in zip(prompts, pictures_B3HW, strict=True)
    ]
