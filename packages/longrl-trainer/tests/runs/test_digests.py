"""Everything that affects a model counts: different weights anywhere in its folder make another run."""

import json
import shutil
from pathlib import Path

import pytest

from longrl_trainer.config.stages import SftConfig
from longrl_trainer.errors import TrainerUsageError
from longrl_trainer.runs.digests import digest_of, digest_of_uppermost_files
from longrl_trainer.runs.folder import open_run
from longrl_trainer.runs.settings import SETTINGS_NAME
from mrsp_engine.tiny.published import write_published

PARTS = (
    "llm/model-00002-of-00004.safetensors",
    "llm/tokenizer_config.json",
    "vision_tower/preprocessor_config.json",
    "vision_tower/model.safetensors",
    "mm_projector/model.safetensors",
    "config.json",
)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    write_published("longvila_r1_7b", tmp_path / "model")
    return tmp_path / "model"


def begin(config: SftConfig) -> None:
    with open_run("sft", config, model=config.model, data=config.data):
        pass


def change(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def forget_folders(output: Path, model: Path) -> None:
    """Write the settings of an older run, which recorded only top-level files."""
    settings = json.loads((output / SETTINGS_NAME).read_text())
    assert settings["inputs"]["model"] != digest_of_uppermost_files(model)
    settings["inputs"]["model"] = digest_of_uppermost_files(model)
    (output / SETTINGS_NAME).write_text(json.dumps(settings))


@pytest.mark.parametrize("part", PARTS)
def test_other_parts_are_another_run(world, model, tmp_path, part):
    config = world.sft(tmp_path / "run", model__folder=model)
    begin(config)
    begin(config)
    change(model / part)
    with pytest.raises(TrainerUsageError, match=r"contains another run: inputs\.model was") as caught:
        begin(config)
    assert "\n" not in str(caught.value)


def test_a_part_more_or_under_another_name_is_another_run(world, model, tmp_path):
    config = world.sft(tmp_path / "run", model__folder=model)
    begin(config)
    (model / "llm" / "merges.txt").rename(model / "llm" / "merges")
    with pytest.raises(TrainerUsageError, match="contains another run"):
        begin(config)


def test_what_is_no_part_of_the_model_may_change(world, model, tmp_path):
    """A hub's metadata, and the files of runs inside the model's folder."""
    options = {"model__folder": model, "model__store": model / "embeddings"}
    config = world.sft(model / "runs" / "first", **options)
    begin(config)
    for name in (".cache/huggingface/note", "embeddings/ab/x.safetensors", "runs/first/checkpoints/x", "runs/second/x"):
        (model / name).parent.mkdir(parents=True, exist_ok=True)
        (model / name).write_text("new")
    begin(config)
    shutil.copytree(model, tmp_path / "moved", ignore=shutil.ignore_patterns("runs", "embeddings"))
    begin(config.model_copy(update={"model": config.model.model_copy(update={"folder": tmp_path / "moved"})}))


def test_runs_begun_before_go_on_and_know_the_whole_model_from_then_on(world, model, tmp_path):
    config = world.sft(tmp_path / "run", model__folder=model)
    begin(config)
    whole = json.loads((config.output / SETTINGS_NAME).read_text())
    forget_folders(config.output, model)
    begin(config)
    assert json.loads((config.output / SETTINGS_NAME).read_text()) == whole
    change(model / "llm" / "config.json")
    with pytest.raises(TrainerUsageError, match="contains another run"):
        begin(config)


def test_runs_begun_before_are_refused_with_another_model(world, model, tmp_path):
    config = world.sft(tmp_path / "run", model__folder=model)
    begin(config)
    forget_folders(config.output, model)
    before = (config.output / SETTINGS_NAME).read_bytes()
    change(model / "config.json")
    with pytest.raises(TrainerUsageError, match=r"contains another run: inputs\.model was"):
        begin(config)
    assert (config.output / SETTINGS_NAME).read_bytes() == before


def test_models_without_folders_keep_their_digest(world):
    assert digest_of(world.model, "`model.folder`") == digest_of_uppermost_files(world.model)
