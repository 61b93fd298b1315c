"""A published model survives training: its dtypes, files and names stay the same."""

from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from longrl_trainer.grpo import train_grpo
from longrl_trainer.runs.progress import SilentProgress
from longrl_trainer.sft import train_sft
from longrl_trainer.training.checkpoints import list_checkpoints
from mrsp_engine.tiny.published import write_published


class InterruptionError(Exception):
    """Represents whatever ends a run."""


class Interruption(SilentProgress):
    """Ends the loop after a number of steps."""

    def __init__(self, after: int) -> None:
        self._left = after
        self._is_loop = False

    @contextmanager
    def task(self, description, *, total, done=0):
        self._is_loop = description == "SFT"
        yield self

    def advance(self, amount=1, *, note=""):
        self._left -= self._is_loop
        if self._is_loop and not self._left:
            raise InterruptionError


def others(folder: Path) -> dict[str, bytes]:
    """All files except the weights."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".safetensors"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {
        f"{path.relative_to(folder)} {name}": tensor
        for path in folder.rglob("*.safetensors")
        for name, tensor in load_file(path).items()
    }


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["qwen2_5_vl_3b", "nvila_8b"])
def test_interrupted_or_not_it_ends_as_it_was_published(world, tmp_path, kind):
    model = tmp_path / "model"
    write_published(kind, model)
    options = {
        "model__folder": model,
        "model__store": tmp_path / "embeddings",
        "epochs": 1,
        "checkpoint_every_steps": 1,
    }
    straight, broken = (world.sft(tmp_path / name, **options) for name in ("straight", "broken"))
    train_sft(straight)
    with pytest.raises(InterruptionError):
        train_sft(broken, progress=Interruption(after=2))
    (checkpoint,) = list_checkpoints(broken.output)
    kept = {name: tensor for name, tensor in checkpoint.read_weights().items() if not tensor.is_meta}
    assert {tensor.dtype for tensor in kept.values()} == {torch.float32}  # nothing is rounded on the way
    assert any(not tensor.equal(tensor.bfloat16().float()) for tensor in kept.values())
    train_sft(broken)

    before, after, again = (weights(folder) for folder in (model, straight.output / "model", broken.output / "model"))
    assert before.keys() == after.keys() == again.keys()
    assert {tensor.dtype for tensor in after.values()} == {torch.bfloat16}
    assert any(not tensor.equal(before[name]) for name, tensor in after.items())
    assert all(tensor.equal(again[name]) for name, tensor in after.items())
    assert others(straight.output / "model") == others(broken.output / "model") == others(model)


@pytest.mark.slow
def test_the_next_stage_starts_from_it(world, tmp_path):
    write_published("qwen2_5_vl_7b", tmp_path / "model")
    options = {"model__store": tmp_path / "embeddings"}
    first = train_sft(world.sft(tmp_path / "sft", model__folder=tmp_path / "model", epochs=1, **options))
    second = train_grpo(world.grpo(tmp_path / "grpo", model__folder=first.model_folder, steps=1, **options))
    assert others(second.model_folder) == others(tmp_path / "model")
    assert weights(second.model_folder).keys() == weights(tmp_path / "model").keys()
