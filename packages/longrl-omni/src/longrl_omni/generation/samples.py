"""Drawing samples of a model: a folder of PNG or MP4 files, and one line about each."""

import json
from collections.abc import Sequence
from typing import Any

import torch

from longrl_files.messages import visible
from longrl_omni.generation.config.recipes import GenerateConfig
from longrl_omni.generation.evaluation import as_requests, draw_media, kind_of_samples
from longrl_omni.generation.media_files import suffix_of, write_medium
from longrl_omni.generation.policies.base import load_generation_policy, read_prompts_for
from longrl_omni.generation.policies.model_files import save_folder
from longrl_omni.generation.prompts import read_prompts
from longrl_omni.generation.rewards.judging import judge_samples, load_generation_rewards, refuse_other_kinds
from longrl_omni.generation.runs import choose_device
from longrl_trainer.errors import TrainerUsageError

SAMPLES_NAME = "samples.jsonl"


def generate_samples(config: GenerateConfig) -> dict[str, float | None]:
    """Write pictures or clips for all prompts; returns the mean of every reward.

    Raises:
        TrainerUsageError: The output folder isn't empty, or an input is missing.
    """
    if config.output.is_file() or (config.output.is_dir() and any(config.output.iterdir())):
        raise TrainerUsageError(f"`output` = {config.output}: expected no file and no folder with contents")
    rewards = load_generation_rewards(config.rewards) if config.rewards else []
    read_prompts(config.prompts, "prompts")  # before a model is loaded
    policy = load_generation_policy(
        config.model.folder,
        dtype=getattr(torch, config.model.dtype),
        device=choose_device(config.model.device),
        settings=config.sampling,
    )
    prompts = read_prompts_for(policy, config.prompts, "prompts")
    refuse_other_kinds(rewards, kind_of_samples(policy))
    by_sample, media = draw_media(
        policy, prompts, config.sampling, num_per_prompt=config.samples_per_prompt, seed=config.seed
    )
    judged = judge_samples(rewards, as_requests(policy, by_sample, media))
    lines: Sequence[dict[str, Any]] = [
        {
            "file": f"{number:05d}{suffix_of(policy.frames_per_second)}",
            "prompt": prompt,
            "rewards": {name: results[number].value for name, results in judged.results.items()},
            "parsed": {
                name: visible(results[number].parsed or "", 200)
                for name, results in judged.results.items()
                if results[number].parsed is not None
            },
        }
        for number, prompt in enumerate(by_sample)
    ]

    def write(partial: Any) -> None:
        for line, medium in zip(lines, media, strict=True):
            write_medium(medium, policy.frames_per_second, partial / line["file"])
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (partial / SAMPLES_NAME).write_text(text)

    save_folder(config.output, write)
    return judged.means()
