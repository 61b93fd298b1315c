"""What ranks seldom meet together: mixed media, a video that one rank alone can't use, adapters and a lazy feed."""

import json
from contextlib import nullcontext
from typing import Any
from unittest.mock import patch

import pytest
import torch.distributed as dist
from safetensors.torch import load_file

from longrl_trainer.config.stages import GrpoConfig, SftConfig, TrainingConfig
from longrl_trainer.grpo import train_grpo
from longrl_trainer.runs.journal import read_json_lines
from longrl_trainer.sft import train_sft
from longvideo_reason_data.errors import DataError
from longvideo_reason_data.media.video_file import VideoFile
from longvideo_reason_data.records.record import Split
from mrsp_engine.testing.fixtures import run_on_ranks

SFT: dict[str, Any] = {"epochs": 1, "dtype": "float64", "sharding__kind": "fsdp2"}


def train(*all_values: str) -> None:
    for values in all_values:
        train_sft(SftConfig.model_validate_json(values))


def losses_of(config: TrainingConfig) -> list[float]:
    return [line["loss"] for line in read_json_lines(config.output / "metrics.jsonl")]


def dropped_of(config: TrainingConfig) -> dict[str, int]:
    report = json.loads((config.output / "questions.json").read_text())
    return {item["question_id"]: item["found_before_step"] for item in report["dropped_questions"]}


@pytest.mark.long
def test_ranks_learn_from_mixed_media_like_one(new_album, tmp_path):
    album = new_album(splits=[Split.TRAIN_SFT])
    together = [
        album.sft(tmp_path / f"two {name}", **SFT, model__store=tmp_path / name, **changes)
        for name, changes in (
            ("of rows", {"parallel__sequence_ranks": 1}),
            ("of tokens", {"parallel__sequence_ranks": 2}),
            ("with a trained tower", {"parallel__sequence_ranks": 1, "train_vision": "all"}),
        )
    ]
    run_on_ranks(train, 2, *(config.model_dump_json() for config in together))
    alone = [
        album.sft(tmp_path / f"one {vision}", **SFT, model__store=tmp_path / vision, train_vision=vision)
        for vision in ("frozen", "all")
    ]
    for config in alone:
        train_sft(config)
    assert len(losses_of(alone[0])) > 1
    for config, expected in zip(together, (alone[0], alone[0], alone[1]), strict=True):
        assert losses_of(config) == pytest.approx(losses_of(expected), rel=1e-6), config.output


def read_or_fail(video: VideoFile, indices: Any) -> Any:
    """A disk that gives green videos to be opened, but not their frames."""
    if video.path.name.endswith("-green.mp4"):
        raise DataError(f"{video.path.name}: the frames can't be read here")
    return READ(video, indices)


READ = VideoFile.read


def train_with_a_bad_disk(sft_values: str, grpo_values: str) -> None:
    """Only the second rank has it."""
    with patch.object(VideoFile, "read", read_or_fail) if dist.get_rank() == 1 else nullcontext():
        train_sft(SftConfig.model_validate_json(sft_values))
        train_grpo(GrpoConfig.model_validate_json(grpo_values))


@pytest.mark.long
def test_a_video_that_one_rank_cannot_use_is_dropped_by_all(started, tmp_path):
    """Every step shows one video, whose frames are read by both ranks."""
    one_video = {"prefetch_steps": 0, "dtype": "float64"}
    sft = SFT | one_video | {"rows_per_step": 1}
    grpo = one_video | {"steps": 6, "prompts_per_step": 1, "max_response_tokens": 8}
    (sft_on_ranks, grpo_on_ranks), (sft_alone, grpo_alone) = (
        (
            started.sft(tmp_path / f"sft {num}", **sft, model__store=tmp_path / f"sft store {num}"),
            started.grpo(tmp_path / f"grpo {num}", **grpo, model__store=tmp_path / f"grpo store {num}"),
        )
        for num in (2, 1)
    )
    run_on_ranks(train_with_a_bad_disk, 2, sft_on_ranks.model_dump_json(), grpo_on_ranks.model_dump_json())
    with patch.object(VideoFile, "read", read_or_fail):
        train_sft(sft_alone)
        train_grpo(grpo_alone)
    for on_ranks, alone in ((sft_on_ranks, sft_alone), (grpo_on_ranks, grpo_alone)):
        assert len(dropped_of(alone)) == 2
        assert dropped_of(on_ranks) == dropped_of(alone)
    assert losses_of(sft_on_ranks) == pytest.approx(losses_of(sft_alone), rel=1e-6)
    assert len(losses_of(grpo_on_ranks)) == 6


@pytest.mark.long
def test_adapters_and_sharded_weights_learn_from_videos_that_are_prepared_meanwhile(new_world, tmp_path):
    """The media of coming steps are encoded in the background, one is gone; nothing of it changes what is learned."""
    world = new_world(splits=[Split.TRAIN_SFT])
    (world.dataset / "videos" / "train_sft-blue.mp4").unlink()
    values = SFT | {"epochs": 2, "rows_per_step": 2, "questions_per_row": 1, "lora__rank": 4, "lora__alpha": 8}

    def config_of(name: str, **changes: Any) -> SftConfig:
        return world.sft(tmp_path / name, **values | changes, model__store=tmp_path / f"store {name}")

    together = [
        config_of(f"two {prefetch_steps} {vision}", prefetch_steps=prefetch_steps, lora__vision=vision)
        for prefetch_steps, vision in ((2, False), (2, True))
    ]
    run_on_ranks(train, 2, *(config.model_dump_json() for config in together))
    for config in together:
        vision = config.lora.vision
        alone = config_of(f"one {vision}", prefetch_steps=0, lora__vision=vision)
        train_sft(alone)
        assert len(losses_of(alone)) == 6
        assert losses_of(config) == pytest.approx(losses_of(alone), rel=1e-6)
        assert dropped_of(config) == dropped_of(alone)
        assert len(dropped_of(alone)) == 2
        learned, expected = (load_file(run.output / "adapter" / "adapter_model.safetensors") for run in (config, alone))
        assert learned.keys() == expected.keys()
        assert max(float((learned[name] - expected[name]).abs().max()) for name in expected) <= 1e-6
