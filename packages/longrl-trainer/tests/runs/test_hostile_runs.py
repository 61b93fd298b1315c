"""Runs from elsewhere are resumed as far as they are runs: what isn't is one line, and nothing outside is touched."""

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from longrl_trainer.errors import TrainerError
from longrl_trainer.sft import train_sft
from longvideo_reason_data.errors import DataError
from mrsp_engine.errors import EngineError

pytestmark = pytest.mark.timeout(120)
MOST_SECONDS = 20.0
FLAT = {"warmup_fraction": 0.0, "min_learning_rate_fraction": 1.0}
SHARD = "shard-00001-model-00001-of-00001.safetensors"
FILES = ("settings.json", "result.json", "metrics.jsonl", "{step}/state.json", f"{{step}}/{SHARD}")

Change = Callable[[Path, Path], None]


def step_of(run: Path) -> Path:
    (step,) = (run / "checkpoints").iterdir()
    return step


def place(run: Path, name: str) -> Path:
    return Path(name.format(step=step_of(run))) if name.startswith("{") else run / name


def other(name: str, kind: str) -> Change:
    def change(run: Path, outside: Path) -> None:
        path = place(run, name)
        if kind == "link":
            path.rename(outside / "moved")
            path.symlink_to(outside / "moved")
            return
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
        if kind == "fifo":
            os.mkfifo(path)
        else:
            path.mkdir()

    return change


def text(name: str, content: str | bytes) -> Change:
    def change(run: Path, outside: Path) -> None:
        place(run, name).write_bytes(content.encode() if isinstance(content, str) else content)

    return change


def merged(name: str, **values: Any) -> Change:
    def change(run: Path, outside: Path) -> None:
        path = place(run, name)
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


def rewritten(
    change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]] = dict,
    offsets: Callable[[dict[str, Any]], Any] = dict,
) -> Change:
    """Other tensors in a shard, or another header, and `state.json` to match."""

    def write(run: Path, outside: Path) -> None:
        path = step_of(run) / SHARD
        tensors = change(load_file(path))
        entries = {name: {"saved_offsets": [0] * tensor.dim()} for name, tensor in tensors.items()}
        save_file(tensors, path, metadata={"DCP_SHARDING_INFO": json.dumps(offsets(entries))})
        merged("{step}/state.json", files={SHARD: path.stat().st_size})(run, outside)

    return write


def first(tensors: dict[str, Any], kind: str = "exp_avg/") -> str:
    return next(name for name in tensors if name.startswith(kind))


def sparse(run: Path, outside: Path) -> None:
    with (step_of(run) / SHARD).open("r+b") as file:
        file.truncate(2**40)
    merged("{step}/state.json", files={SHARD: 2**40})(run, outside)


HOSTILE: dict[str, Change] = {
    **{f"{kind} for {name}": other(name, kind) for name in FILES for kind in ("link", "fifo", "folder")},
    "link for checkpoints": other("checkpoints", "link"),
    "fifo for checkpoints": other("checkpoints", "fifo"),
    "link for a checkpoint": other("{step}", "link"),
    "fifo for a checkpoint": other("{step}", "fifo"),
    "a fifo beside the shards": lambda run, outside: os.mkfifo(step_of(run) / "shard-00002.safetensors"),
    "settings are deep": text("settings.json", "[" * 100_000),
    "settings are a list": text("settings.json", "[]"),
    "settings are not text": text("settings.json", b"\xff\xfe"),
    "settings are infinite": text("settings.json", '{"stage": 1e999}'),
    "settings of settings are a list": merged("settings.json", settings=[]),
    "inputs are a text": merged("settings.json", inputs="all"),
    "changes are a number": merged("settings.json", changes=5),
    "another stage": merged("settings.json", stage="\x1b[2J" + "x" * 10_000),
    "result is a list": text("result.json", "[]"),
    "result is deep": text("result.json", '{"a":' * 100_000),
    "metrics are deep": text("metrics.jsonl", "[" * 100_000 + "\n"),
    "metrics without steps": text("metrics.jsonl", '{"loss": 1}\n'),
    "steps are texts": text("metrics.jsonl", '{"step": "2"}\n'),
    "state is a list": text("{step}/state.json", "[]"),
    "state of another step": text("{step}/state.json", '{"format_version": 1, "step": 5}'),
    "state of an earlier version": text("{step}/state.json", '{"format_version": 1, "step": 2}'),
    "files are a list": merged("{step}/state.json", files=[]),
    "files lie elsewhere": merged("{step}/state.json", files={"../../settings.json": 5}),
    "another seed": merged("{step}/state.json", seed=7),
    "a shard is none": text(f"{{step}}/{SHARD}", b"\xff" * 64),
    "a shard is a hole": sparse,
    "moments of another shape": rewritten(lambda tensors: tensors | {first(tensors): torch.zeros(3, 5)}),
    "moments are numbers": rewritten(lambda tensors: tensors | {first(tensors): torch.zeros(3, dtype=torch.int64)}),
    "moments are missing": rewritten(lambda tensors: {n: t for n, t in tensors.items() if n != first(tensors)}),
    "weights are missing": rewritten(lambda ts: {n: t for n, t in ts.items() if n != first(ts, "weight/")}),
    "a part is missing": rewritten(offsets=lambda entries: entries | {first(entries): {"saved_offsets": [7] * 2}}),
    "offsets are missing": rewritten(offsets=lambda entries: {}),
    "offsets are negative": rewritten(offsets=lambda entries: entries | {first(entries): {"saved_offsets": [-1, 0]}}),
    "offsets are texts": rewritten(offsets=lambda entries: entries | {first(entries): {"saved_offsets": ["0", 0]}}),
    "offsets are a list": rewritten(offsets=list),
}


@pytest.fixture(scope="module")
def finished(world, tmp_path_factory) -> Path:
    """An SFT run of two epochs with a checkpoint at its end. To be copied."""
    output = tmp_path_factory.mktemp("finished") / "run"
    train_sft(world.sft(output, **FLAT))
    assert step_of(output).is_dir()
    return output


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    found = {str(path): path.lstat() for path in folder.rglob("*")}
    return {name: (status.st_size, status.st_mtime_ns) for name, status in found.items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTILE)
def test_a_run_that_is_none_is_refused_in_one_line(world, finished, tmp_path, name):
    run, outside = tmp_path / "run", tmp_path / "outside"
    shutil.copytree(finished, run)
    outside.mkdir()
    (outside / "result.json.partial-1").write_text("mine")
    HOSTILE[name](run, outside)
    before, started = listing(outside), time.monotonic()
    with pytest.raises((TrainerError, EngineError, DataError)) as caught:
        train_sft(world.sft(run, epochs=3, **FLAT))
    assert time.monotonic() - started < MOST_SECONDS
    assert "\n" not in str(caught.value)
    assert listing(outside) == before


def test_the_run_itself_goes_on(world, finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    train_sft(world.sft(tmp_path / "run", epochs=3, **FLAT))


def test_other_questions_in_a_file_of_another_kind(world, finished, tmp_path):
    for content in ("[]", '{"dropped_questions": 5}', '{"dropped_questions": [5]}', '{"dropped_questions": [{}]}'):
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        shutil.copytree(finished, tmp_path / "run")
        (tmp_path / "run" / "questions.json").write_text(content)
        with pytest.raises(TrainerError, match="was written by something else"):
            train_sft(world.sft(tmp_path / "run", epochs=3, **FLAT))


def test_files_reached_by_a_hubs_links_are_in_the_digest(world, tmp_path):
    """Other weights in the hub's cache are another run, though the snapshot's links are the same."""
    snapshot, blobs = tmp_path / "snapshots" / "1", tmp_path / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for path in world.model.iterdir():
        shutil.copyfile(path, blobs / path.name)
        (snapshot / path.name).symlink_to(Path("../../blobs") / path.name)
    config = world.sft(tmp_path / "run", model__folder=snapshot)
    train_sft(config)
    weights = blobs / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(TrainerError, match=r"contains another run: inputs\.model was|holds another run: inputs\.model"):
        train_sft(config)
