"""What is exported out of a run, whenever that is, is what the run itself would have saved as published."""

import json
import shutil
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from longrl_trainer.durable import PARTIAL_MARK
from longrl_trainer.errors import TrainerError
from longrl_trainer.grpo import train_grpo
from longrl_trainer.runs.export import export_model
from longrl_trainer.runs.progress import SilentProgress
from longrl_trainer.sft import train_sft
from longrl_trainer.training.checkpoints import Checkpoint, describe_state, restore
from longrl_trainer.training.optimizer import Optimizer
from longrl_trainer.training.ranks import ALONE
from longrl_trainer.training.saving import CheckpointSaver
from mrsp_engine.embeddings.store import EmbeddingStore
from mrsp_engine.errors import EngineError
from mrsp_engine.families import load_policy
from mrsp_engine.tiny.published import write_published


class BreakError(Exception):
    """Stands for whatever ends a run."""


class Break(SilentProgress):
    """Ends the loop after two steps."""

    @contextmanager
    def task(self, description, *, total, done=0):
        self._left = 2 if description in ("SFT", "GRPO") else None
        yield self

    def advance(self, amount=1, *, note=""):
        if self._left is not None:
            self._left -= 1
            if not self._left:
                raise BreakError


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {
        f"{path.relative_to(folder)} {name}": tensor
        for path in folder.rglob("*.safetensors")
        for name, tensor in load_file(path).items()
    }


def checkpoint_of(run: Path, step: int) -> Checkpoint:
    return Checkpoint(step=step, folder=run / "checkpoints" / f"step-{step:06d}")


def break_off(world, folder: Path, kind: str):
    """An SFT run of a published model that has a checkpoint after step 1 and none after step 2."""
    write_published(kind, folder / "published")
    options = {"model__folder": folder / "published", "model__store": folder / "embeddings"}
    config = world.sft(folder / "run", checkpoint_every_steps=1, **options)
    with pytest.raises(BreakError):
        train_sft(config, progress=Break())
    return config


@pytest.fixture(scope="module")
def broken_off(world, tmp_path_factory) -> Path:
    """A folder with `published` and the `run` that began with it. To be copied."""
    folder = tmp_path_factory.mktemp("broken off")
    break_off(world, folder, "qwen2_5_vl_3b")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["qwen2_5_vl_7b", "qwen3_vl_4b", "nvila_8b", "longvila_r1_7b"])
def test_a_checkpoint_as_it_was_published(world, tmp_path, kind):
    config = break_off(world, tmp_path, kind)
    before = contents(config.output)
    assert export_model(config.output, tmp_path / "exported") == 1
    assert contents(config.output) == before

    policy = load_policy(config.model.folder, store=EmbeddingStore(tmp_path / "embeddings"))
    policy.freeze_vision()
    restore(checkpoint_of(config.output, 1), Optimizer(policy.model, weight_decay=0.0, max_gradient_norm=1.0), seed=0)
    own = policy.model.state_dict()
    for name, tensor in checkpoint_of(config.output, 1).read_weights().items():
        assert tensor.shape == own[name].shape
        assert tensor.is_meta or tensor.equal(own[name])
    assert any(not tensor.equal(tensor.bfloat16().float()) for tensor in own.values())
    policy.save(tmp_path / "saved")
    assert contents(tmp_path / "exported") == contents(tmp_path / "saved")
    assert contents(tmp_path / "exported").keys() == contents(config.model.folder).keys()


@pytest.mark.slow
def test_a_finished_run_gives_its_model(world, tmp_path):
    config = break_off(world, tmp_path, "qwen2_5_vl_3b")
    num_steps = train_sft(config).num_steps
    assert num_steps > 2
    shutil.rmtree(config.model.folder)  # nothing of it is needed any more
    for name, step in (("newest", None), ("last", num_steps)):
        assert export_model(config.output, tmp_path / name, step=step) == num_steps
        assert contents(tmp_path / name) == contents(config.output / "model")
    with pytest.raises(TrainerError, match=rf"has no model of step 1; expected one of {num_steps}$"):
        export_model(config.output, tmp_path / "first", step=1)


@pytest.mark.slow
def test_the_next_stage_and_its_steps(world, tmp_path):
    """A run that began with the model of another, saved more steps than one, and goes on while it is exported."""
    write_published("qwen2_5_vl_7b", tmp_path / "published")
    options = {"model__store": tmp_path / "embeddings", "checkpoint_every_steps": 2}
    first = train_sft(world.sft(tmp_path / "sft", model__folder=tmp_path / "published", epochs=1, **options))
    grpo = world.grpo(tmp_path / "grpo", model__folder=first.model_folder, steps=3, **options)
    found: list[int] = []

    class Export(SilentProgress):
        def advance(self, amount=1, *, note=""):
            if (grpo.output / "checkpoints" / "step-000002").exists():
                half = grpo.output / "checkpoints" / f"step-000004{PARTIAL_MARK}1"
                half.mkdir()
                found.append(export_model(grpo.output, tmp_path / f"exported{len(found)}"))
                assert half.exists()

    train_grpo(grpo, progress=Export())
    assert found == [2]
    trained = checkpoint_of(grpo.output, 2).read_weights()
    exported = weights(tmp_path / "exported0")
    compared = 0
    for name, tensor in exported.items():
        own = name.rpartition(" ")[2].replace("model.layers", "model.language_model.layers")
        if own in trained and not trained[own].is_meta:
            assert tensor.equal(trained[own].bfloat16())
            compared += 1
    assert compared > 10
    assert export_model(grpo.output, tmp_path / "second", step=2) == 2
    assert contents(tmp_path / "second") == contents(tmp_path / "exported0")
    assert export_model(grpo.output, tmp_path / "third", step=3) == 3
    with pytest.raises(TrainerError, match=r"has no model of step 1; expected one of 2, 3$"):
        export_model(grpo.output, tmp_path / "first", step=1)


def test_a_model_inside_which_the_run_lies(world, tmp_path):
    """Neither the run nor the store is taken for a part of the model."""
    write_published("longvila_r1_7b", tmp_path / "model")
    names = contents(tmp_path / "model").keys()
    options = {"model__folder": tmp_path / "model", "model__store": tmp_path / "model" / "embeddings"}
    config = world.sft(tmp_path / "model" / "runs" / "first", checkpoint_every_steps=1, **options)
    with pytest.raises(BreakError):
        train_sft(config, progress=Break())
    export_model(config.output, tmp_path / "exported")
    assert contents(tmp_path / "exported").keys() == names
    export_model(config.output, tmp_path / "model" / "exported")
    assert contents(tmp_path / "model" / "exported") == contents(tmp_path / "exported")


@pytest.mark.slow
def test_a_checkpoint_that_is_replaced_meanwhile(world, broken_off, tmp_path):
    """Each time all weights of one step come out, never some of them and the rest as they were published."""
    shutil.copytree(broken_off, tmp_path, dirs_exist_ok=True)
    run, published = tmp_path / "run", broken_off / "published"
    policy = load_policy(published, store=EmbeddingStore(tmp_path / "embeddings"))
    policy.freeze_vision()
    optimizer = Optimizer(policy.model, weight_decay=0.0, max_gradient_norm=1.0)
    is_over, saver = threading.Event(), CheckpointSaver(run, num_kept=1, ranks=ALONE)

    def save_steps() -> None:
        for step in range(2, 200):
            with torch.no_grad():
                for tensor in policy.model.parameters():
                    tensor.fill_(step)
            saver.start(
                optimizer.state_tensors(),
                describe_state(policy.model, step=step, seed=0, dtype="float32", score=None),
            )
            if is_over.is_set():
                return

    saving = threading.Thread(target=save_steps)
    saving.start()
    try:
        while not (run / "checkpoints" / "step-000002").exists():
            pass
        steps = [export_model(run, tmp_path / "exported" / str(number)) for number in range(20)]
    finally:
        is_over.set()
        saving.join()
        saver.close()
    assert len(set(steps)) > 1
    for number, step in enumerate(steps):
        exported = weights(tmp_path / "exported" / str(number))
        assert all(tensor.eq(step).all() for name, tensor in exported.items() if "visual" not in name), step


class TestRefusals:
    def refuse(self, message: str, *arguments: Path, **options) -> None:
        with pytest.raises((TrainerError, EngineError), match=message) as caught:
            export_model(*arguments, **options)
        assert "\n" not in str(caught.value)
        assert not arguments[1].exists() or contents(arguments[1]) == {"mine": b""}

    def test_no_run(self, tmp_path):
        self.refuse(r"none: no run is here .* expected the `output` folder", tmp_path / "none", tmp_path / "exported")
        self.refuse(r"no run is here", tmp_path, tmp_path / "exported")

    @pytest.mark.slow
    def test_a_run_without_a_checkpoint(self, broken_off, tmp_path):
        shutil.copytree(broken_off / "run", tmp_path / "run")
        shutil.rmtree(tmp_path / "run" / "checkpoints")
        self.refuse("has no checkpoint yet", tmp_path / "run", tmp_path / "exported")
        self.refuse("has no checkpoint yet", tmp_path / "run", tmp_path / "exported", step=3)

    @pytest.mark.slow
    def test_an_unknown_step(self, broken_off, tmp_path):
        self.refuse("no model of step 2; expected one of 1$", broken_off / "run", tmp_path / "exported", step=2)

    @pytest.mark.slow
    def test_an_output_that_exists(self, broken_off, tmp_path):
        (tmp_path / "exported").mkdir()
        (tmp_path / "exported" / "mine").touch()
        self.refuse("exists and is not an empty folder", broken_off / "run", tmp_path / "exported")

    @pytest.mark.slow
    def test_a_damaged_checkpoint(self, broken_off, tmp_path):
        shutil.copytree(broken_off / "run", tmp_path / "run")
        path = next((tmp_path / "run" / "checkpoints" / "step-000001").glob("*.safetensors"))
        path.write_bytes(path.read_bytes()[:100])
        self.refuse("step-000001 is damaged .*has 100 bytes", tmp_path / "run", tmp_path / "exported")

    @pytest.mark.slow
    def test_the_starting_model_is_gone_or_another(self, world, tmp_path):
        config = break_off(world, tmp_path, "qwen2_5_vl_3b")
        moved, output = tmp_path / "moved", tmp_path / "exported"
        config.model.folder.rename(moved)
        self.refuse("published: the model that the run began with isn't here", config.output, output)
        self.refuse("none: is no checkpoint; set `--model`", config.output, output, model=tmp_path / "none")
        assert export_model(config.output, output, model=moved) == 1
        shutil.copytree(moved, config.model.folder)
        with (config.model.folder / "README.md").open("a") as file:
            file.write("More.\n")
        self.refuse("published: isn't the model any more", config.output, tmp_path / "other")
        settings = json.loads((config.output / "settings.json").read_text())
        del settings["places"]
        (config.output / "settings.json").write_text(json.dumps(settings))
        self.refuse("begun by a version that didn't note", config.output, tmp_path / "other")
        write_published("qwen3_vl_4b", tmp_path / "stranger")
        self.refuse("loaded from another checkpoint", config.output, tmp_path / "other", model=tmp_path / "stranger")
