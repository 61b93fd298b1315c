"""Algorithms for generation side by side, from one pretrained model of the world of pictures.

Every algorithm has the same prompts and the recipe's settings for it, the shared ones of `[rl]` and those of its own
table, so the rows compare what a sample and a second of each are worth. A killed benchmark continues.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from longrl.errors import AppUsageError
from longrl.pictures.config import ACCURACY, load_pictures
from longrl.pipeline import read_finished
from longrl_omni.generation.config.algorithms import ALGORITHMS, AlgorithmName
from longrl_omni.generation.config.recipes import GenerateGrpoConfig
from longrl_omni.generation.grpo import train_generation
from longrl_trainer.config.recipes import parse_config
from longrl_trainer.durable import write_json
from longrl_trainer.runs.journal import read_json_lines
from longrl_trainer.runs.progress import ProgressDisplay

ROWS_NAME = "generation.json"


def compare_algorithms(
    world: Path,
    recipe: Path,
    output: Path,
    *,
    algorithms: Sequence[AlgorithmName],
    seeds: Sequence[int],
    progress: ProgressDisplay,
) -> list[dict[str, Any]]:
    """Train by every algorithm with every seed; returns the rows, which are also in `generation.json`.

    Args:
        world: Folder of a quickstart of the world of pictures, of which captions and pretrained model are used.
        recipe: Its recipe; `[rl]` has the settings that all share, `[algorithms.NAME]` those of one.
        output: Folder of the runs.
        algorithms: What to compare; all if empty.
        seeds: Seeds of prompts and noise.
        progress: Where to show progress.

    Raises:
        AppUsageError: The world isn't pretrained.
    """
    if read_finished(world, "pretraining") is None:
        raise AppUsageError(f"--world {world}: expected the folder of a `longrl quickstart --world pictures`")
    rows: list[dict[str, Any]] = []
    for algorithm in algorithms or tuple(ALGORITHMS):
        shared = load_pictures(recipe, output=world, seed=0, algorithm=algorithm).rl
        for seed in seeds:
            folder = output / f"{algorithm}-{seed}"
            chosen = shared.model_dump(mode="json", include=shared.model_fields_set) | {
                "seed": seed,
                "output": str(folder),
            }
            config = parse_config(chosen, GenerateGrpoConfig, source=f"{recipe} with {algorithm}")
            result = train_generation(config, progress=progress)
            journal = read_json_lines(folder / "metrics.jsonl")
            rows.append(
                {
                    "algorithm": algorithm,
                    "seed": seed,
                    "accuracy_before": result.before[ACCURACY],
                    "accuracy_after": result.after[ACCURACY],
                    "held_out_before": result.before[config.held_out_reward],
                    "held_out_after": result.after[config.held_out_reward],
                    "samples": config.steps * config.prompts_per_step * config.group_size,
                    "seconds": sum(sum(line["seconds"].values()) for line in journal),
                }
            )
            write_json(output / ROWS_NAME, rows)
    return rows
