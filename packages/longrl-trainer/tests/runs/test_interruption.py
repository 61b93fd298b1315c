"""At a signal a run saves the step that it is in and ends with a code of its own; it continues as if nothing was."""

import os
import signal
import threading
from contextlib import contextmanager
from typing import Any

import pytest
import torch.distributed as dist
from safetensors.torch import load_file

from longrl_trainer.config.stages import SftConfig
from longrl_trainer.errors import StoppedError
from longrl_trainer.runs.export import export_model
from longrl_trainer.runs.interruption import StopSignals
from longrl_trainer.runs.journal import read_json_lines
from longrl_trainer.runs.progress import SilentProgress
from longrl_trainer.sft import train_sft
from longrl_trainer.training.checkpoints import list_checkpoints
from mrsp_engine.testing.fixtures import run_on_ranks


class Signalling(SilentProgress):
    """Sends a signal to a process, by default this one, when the loop has made some steps."""

    def __init__(self, number: signal.Signals, *, after: int, process: int | None = None) -> None:
        self._number, self._left, self._process = number, after, process or os.getpid()

    @contextmanager
    def task(self, description: str, *, total: int, done: int = 0) -> Any:
        self._is_loop = description == "SFT"
        yield self

    def advance(self, amount: int = 1, *, note: str = "") -> None:
        self._left -= self._is_loop
        if not self._left:
            os.kill(self._process, self._number)


def losses(config: SftConfig) -> list[float]:
    return [line["loss"] for line in read_json_lines(config.output / "metrics.jsonl")]


def weights(config: SftConfig) -> dict[str, bytes]:
    path = config.output / "model" / "model.safetensors"
    return {name: tensor.numpy().tobytes() for name, tensor in load_file(path).items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR2"])
def test_a_run_saves_and_ends_at_a_signal_and_goes_on_later(world, tmp_path, name):
    config, whole = (world.sft(tmp_path / run, warning_signal="SIGUSR2") for run in ("run", "whole"))
    before = signal.getsignal(signal.Signals[name])
    with pytest.raises(StoppedError, match=rf"run: stopped by {name} after step 3, which is saved") as caught:
        train_sft(config, progress=Signalling(signal.Signals[name], after=3))
    assert caught.value.exit_code == 75
    assert signal.getsignal(signal.Signals[name]) == before
    assert max(checkpoint.step for checkpoint in list_checkpoints(config.output)) == 3  # not due before step 4
    assert train_sft(config).num_steps == train_sft(whole).num_steps == 4
    assert losses(config) == losses(whole)
    assert weights(config) == weights(whole)


def test_what_is_not_asked_for_is_left_alone():
    """Ctrl+C, other threads, and signals that a library handles outside of Python."""
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
    found: list[Any] = []

    def look() -> None:
        with StopSignals("SIGTERM", "SIGUSR1"):
            found.append([signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)])

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert found == [before]
    look()
    assert found[1][0] == before[0]
    assert found[1][1] != before[1]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)] == before


def train_on_ranks(values: str) -> str:
    """The first rank sends the other one a signal."""
    config = SftConfig.model_validate_json(values)
    pids: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(pids, os.getpid())
    try:
        train_sft(config, progress=Signalling(signal.SIGUSR2, after=1, process=pids[1]))
    except StoppedError as error:
        return str(error)
    return "not stopped"


@pytest.mark.slow
def test_all_ranks_stop_when_one_gets_a_signal(world, tmp_path):
    config = world.sft(tmp_path / "run", warning_signal="SIGUSR2", epochs=10)
    messages = run_on_ranks(train_on_ranks, 2, config.model_dump_json())
    assert messages[0] == messages[1]
    assert "stopped by SIGUSR2 after step" in messages[0]
    last = len(losses(config))
    assert max(checkpoint.step for checkpoint in list_checkpoints(config.output)) == last < 20


def train_until_signal(values: str, after: int) -> bool:
    """Train; the first rank stops all after some steps. Whether the run is finished."""
    try:
        train_sft(SftConfig.model_validate_json(values), progress=Signalling(signal.SIGUSR2, after=after))
    except StoppedError:
        return False
    return True


@pytest.mark.long
def test_a_run_goes_on_with_other_ranks_split_and_sharded_otherwise(world, tmp_path):
    options = {"warning_signal": "SIGUSR2", "epochs": 5, "dtype": "float64"}
    config, whole = (world.sft(tmp_path / run, **options) for run in ("run", "whole"))
    for num_ranks, changes in (
        (2, {"parallel__sequence_ranks": 1}),  # FSDP2, by default
        (1, {}),
        (4, {"parallel__sequence_ranks": 2, "sharding__kind": "none"}),
        (4, {"parallel__sequence_ranks": 2, "sharding__kind": "fsdp2"}),
    ):
        values = world.sft(config.output, **options, **changes).model_dump_json()
        if num_ranks == 1:
            assert not train_until_signal(values, 2)
        else:
            assert run_on_ranks(train_until_signal, num_ranks, values, 2) == [False] * num_ranks
    export_model(config.output, tmp_path / "exported")
    train_sft(config)
    train_sft(whole)
    assert losses(config) == pytest.approx(losses(whole), rel=1e-6)
    assert len(losses(config)) == 10
    before, after, exported = (
        load_file(folder / "model.safetensors")
        for folder in (world.model, config.output / "model", tmp_path / "exported")
    )
    other = load_file(whole.output / "model" / "model.safetensors")
    assert all((after[name] - other[name]).abs().max() <= 1e-5 for name in after)
    assert any(not exported[name].equal(before[name]) for name in exported)
