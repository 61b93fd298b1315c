"""A new model of the world of pictures, its prompts, and the settings of a short run."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from longrl_omni.generation.config.recipes import GenerateGrpoConfig
from longrl_omni.generation.pictures.model import create_pictures_policy
from longrl_omni.generation.pictures.prompt_files import (
    HELD_OUT_NAME,
    PROMPTS_NAME,
    PictureCaptionSettings,
    choose_captions,
    write_captions,
)

sys.path.insert(0, str(Path(__file__).parent))  # for modules that several tests share
MakeConfig = Callable[..., GenerateGrpoConfig]


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model of random weights and prompts."""
    folder = tmp_path_factory.mktemp("pictures")
    captions, held_out = choose_captions(PictureCaptionSettings(train_captions=12, held_out_captions=3), seed=0)
    write_captions(folder, captions, held_out)
    create_pictures_policy(seed=0).save(folder / "model")
    return folder


@pytest.fixture
def make_config(world: Path, tmp_path: Path) -> MakeConfig:
    """Settings of a run of two small steps, with some of them changed."""

    def make(**changes: Any) -> GenerateGrpoConfig:
        settings: dict[str, Any] = {
            "output": tmp_path / "run",
            "model": {"folder": world / "model"},
            "prompts": world / PROMPTS_NAME,
            "held_out_prompts": world / HELD_OUT_NAME,
            "rewards": {"jpeg_size": 1.0},
            "held_out_reward": "likeness",
            "steps": 2,
            "prompts_per_step": 2,
            "group_size": 2,
            "learning_rate": 1e-3,
            "evaluation_samples": 1,
            "sampling": {"steps": 3, "samples_per_pass": 4},
            "window_steps": 1,
            "noise_levels_per_sample": 2,
        }
        return GenerateGrpoConfig.model_validate(settings | changes)

    return make
