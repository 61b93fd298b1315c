"""What a launcher looks at, made by hand in the real formats: a checkpoint in two files, a dataset of one question."""

import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from longrl.launch.job import LaunchJob
from longrl_trainer.config.recipes import parse_config
from longrl_trainer.config.stages import SftConfig
from longvideo_reason_data.records.medium import RecordMedium
from longvideo_reason_data.records.record import QuestionRecord, Skill, Split, write_records

sys.path.insert(0, str(Path(__file__).parent))  # for modules that several tests share

MakeJob = Callable[..., LaunchJob]
SHARDS = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen2_5_vl"}))
    (folder / "tokenizer.json").write_text("{}")
    for name in SHARDS:
        save_file({name: np.zeros((4, 4), np.float32)}, folder / name)
    index = {"metadata": {}, "weight_map": {name: name for name in SHARDS}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    folder = tmp_path / "dataset"
    (folder / "videos").mkdir(parents=True)
    (folder / "videos" / "a.mp4").write_bytes(b"only opened here")
    medium = RecordMedium(
        path="videos/a.mp4", digest=hashlib.sha256(b"only opened here").hexdigest(), duration_seconds=1.0
    )
    record = QuestionRecord(
        question_id="one",
        media=(medium,),
        split=Split.TRAIN_SFT,
        skill=Skill.TEMPORAL,
        question="What?",
        options=("a", "b", "c", "d"),
        answer="A",
        evidence=(),
        reasoning="So.",
        source="test",
        license="Apache-2.0",
    )
    write_records(folder / "records.parquet", [record])
    return folder


@pytest.fixture
def make_job(tmp_path: Path, checkpoint: Path, dataset: Path) -> MakeJob:
    def make(**changes: Any) -> LaunchJob:
        values = {
            "output": str(tmp_path / "run"),
            "learning_rate": 1e-3,
            "model": {"folder": str(checkpoint), "store": str(tmp_path / "embeddings")},
            "data": {"dataset": str(dataset), "split": "train_sft", "num_frames": 4},
        }
        own = {name: changes.pop(name) for name in list(changes) if name in values}
        config = parse_config(values | own, SftConfig, source="test")
        fields = {"num_nodes": 1, "processes": 1, "device": "cpu"} | changes
        return LaunchJob(recipe=tmp_path / "sft.toml", command="sft", overrides=(), config=config, **fields)

    return make
