"""Drawing pictures with a model: a folder of PNG files, and one line about each."""

import json
from collections.abc import Sequence
from typing import Any

import torch

from longrl_files.messages import visible
from longrl_omni.generation.config.recipes import GenerateConfig
from longrl_omni.generation.evaluation import as_requests, draw_pictures
from longrl_omni.generation.picture_files import write_png
from longrl_omni.generation.policies.base import load_generation_policy, read_prompts_for
from longrl_omni.generation.policies.model_files import save_folder
from longrl_omni.generation.prompts import read_prompts
from longrl_omni.generation.rewards.judging import judge_pictures, load_picture_rewards
from longrl_omni.generation.runs import choose_device
from longrl_trainer.errors import TrainerUsageError

SAMPLES_NAME = "samples.jsonl"


def generate_pictures(config: GenerateConfig) -> dict[str, float | None]:
    """Write pictures for all prompts; returns the mean of every reward.

    Raises:
        TrainerUsageError: The output folder isn't empty, or an input is missing.
    """
    if config.output.is_file() or (config.output.is_dir() and any(config.output.iterdir())):
        raise TrainerUsageError(f"`output` = {config.output}: expected no file and no folder with contents")
    rewards = load_picture_rewards(config.rewards) if config.rewards else []
    read_prompts(config.prompts, "prompts")  # before a model is loaded
    policy = load_generation_policy(
        config.model.folder,
        dtype=getattr(torch, config.model.dtype),
        device=choose_device(config.model.device),
        settings=config.sampling,
    )
    prompts = read_prompts_for(policy, config.prompts, "prompts")
    by_sample, pictures = draw_pictures(
        policy, prompts, config.sampling, num_per_prompt=config.samples_per_prompt, seed=config.seed
    )
    judged = judge_pictures(rewards, as_requests(by_sample, pictures))
    lines: Sequence[dict[str, Any]] = [
        {
            "file": f"{number:05d}.png",
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
        for line, picture in zip(lines, pictures, strict=True):
            write_png(picture, partial / line["file"])
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (partial / SAMPLES_NAME).write_text(text)

    save_folder(config.output, write)
    return judged.means()
