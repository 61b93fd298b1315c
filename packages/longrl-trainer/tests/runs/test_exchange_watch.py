"""When a rank doesn't come to an exchange, all others end with one line that names it, and nothing hangs."""

import multiprocessing
import os
import re
import runpy
import signal
import sys
import time
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist

from longrl_files.messages import error_line
from longrl_trainer.config.stages import SftConfig
from longrl_trainer.errors import TrainerError
from longrl_trainer.runs.journal import read_json_lines
from longrl_trainer.sft import take_gradients, train_sft
from longrl_trainer.training.checkpoints import list_checkpoints
from longrl_trainer.training.scoring import RowScores

NUM_RANKS, LOST = 3, 1
PATIENCE_SECONDS = 20.0  # a rank that only gets little of a busy machine must not seem lost
LIMIT_SECONDS = 400.0


def act(fault: str, rank: int, folder: str, values: str) -> None:
    """One rank of a run, like the command; the lost one has a fault in its second step."""
    error_file = os.open(f"{folder}/errors of rank {rank}", os.O_WRONLY | os.O_CREAT)
    os.dup2(error_file, sys.stderr.fileno())
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=NUM_RANKS,
        timeout=timedelta(seconds=LIMIT_SECONDS),
    )
    calls = iter(range(1, 100))

    def faulty(*arguments: Any) -> float:
        is_now = next(calls) == 2 and rank == LOST
        if is_now and fault == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if is_now and fault == "sleeping":
            time.sleep(LIMIT_SECONDS)
        if is_now and fault in ("failing", "leaving"):
            raise ValueError("this rank alone fails")
        with patch.object(RowScores, "backward", lambda *_: 0.0) if is_now else nullcontext():  # "skipping"
            return take_gradients(*arguments)

    with patch("longrl_trainer.sft.take_gradients", faulty):
        try:
            train_sft(SftConfig.model_validate_json(values))
        except TrainerError as error:
            print(error_line(error), file=sys.stderr, flush=True)
            os._exit(error.exit_code)
        except ValueError:
            time.sleep(LIMIT_SECONDS if fault == "leaving" else 0)
            os._exit(3)


def config_of(world: Any, folder: Path, **settings: Any) -> SftConfig:
    settings = {"parallel__exchange_patience_seconds": PATIENCE_SECONDS} | settings
    return world.sft(folder / "run", dtype="float64", checkpoint_every_steps=1, **settings)


def end_of_run(config: SftConfig, fault: str, folder: Path) -> tuple[list[int], list[str]]:
    """Exit codes and outputs of all ranks."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["longrl_trainer.sft", "longrl_trainer.grpo", "mrsp_engine.tiny.families"])
    arguments = [(fault, rank, str(folder), config.model_dump_json()) for rank in range(NUM_RANKS)]
    # A test file can't be imported by its name.
    processes = [
        context.Process(target=runpy.run_path, args=(__file__, {"ARGUMENTS": of_rank}, "rank")) for of_rank in arguments
    ]
    for process in processes:
        process.start()
    deadline = time.monotonic() + LIMIT_SECONDS
    for process in processes[:LOST] + processes[LOST + 1 :]:
        process.join(timeout=max(0.0, deadline - time.monotonic()))
    processes[LOST].join(timeout=2.0)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
        process.join()
    return codes, [(folder / f"errors of rank {rank}").read_text() for rank in range(NUM_RANKS)]


ANSWERS = {
    "sleeping": r"rank 1 hasn't come from step 2: act.<locals>.faulty, test_exchange_watch.py:\d+",
    "killed": r"rank 1 doesn't answer, perhaps killed",
    "failing": r"rank 1 has left \(this rank alone fails\)",
    "leaving": r"rank 1 has left \(this rank alone fails\)",
}


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("fault", "sequence_ranks"),
    [
        ("sleeping", 3),
        ("leaving", 1),
        ("killed", 1),
        ("failing", 3),
    ],
)
def test_all_others_name_the_rank_that_does_not_come(world, tmp_path, fault, sequence_ranks):
    config = config_of(world, tmp_path, parallel__sequence_ranks=sequence_ranks)
    codes, outputs = end_of_run(config, fault, tmp_path)
    assert codes == [1, {"sleeping": 1, "killed": -9, "failing": 3}.get(fault, codes[1]), 1]
    place = r"\(step 2: take_gradients > _pass, logprobs.py:\d+\)"
    reason = r"the connection between them broke|parallel.exchange_patience_seconds = 20 is over"
    for output in (outputs[0], outputs[2]):
        assert re.fullmatch(
            rf"error: {config.output}: {ANSWERS[fault]}; ranks 0, 2 wait in all_gather {place}; ({reason}); "
            "started again, the run goes on from its last checkpoint\n",
            output,
        ), output
    assert outputs[1] == (outputs[0] if fault == "sleeping" else "")
    assert ("patience" in outputs[0]) == (fault in ("sleeping", "leaving"))
    # A killed or failing one has perhaps not written its part of the checkpoint yet.
    is_kept = [checkpoint.step for checkpoint in list_checkpoints(config.output)] == [1]
    assert is_kept or fault not in ("sleeping", "leaving")


@pytest.mark.long
def test_the_run_goes_on_from_its_last_checkpoint(world, tmp_path):
    config, whole = config_of(world, tmp_path / "broken"), config_of(world, tmp_path / "whole")
    end_of_run(config, "killed", tmp_path)
    for run in (config, whole):
        train_sft(run)
    losses = [[line["loss"] for line in read_json_lines(run.output / "metrics.jsonl")] for run in (config, whole)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_ranks_that_wait_in_different_exchanges_are_told_apart(world, tmp_path):
    """The lost one skips a backward pass and soon waits for the others, as they do for it."""
    config = config_of(world, tmp_path, rows_per_step=1, parallel__sequence_ranks=3, sharding__kind="none")
    codes, outputs = end_of_run(config, "skipping", tmp_path)
    assert codes == [1, 1, 1]
    for output in outputs:
        assert re.fullmatch(
            r"error: .*; rank 1 waits in all_gather \(step 2: take_gradients, sft.py:\d+\); .*\n", output
        ), output
        assert "ranks 0, 2 wait in messages between ranks (step 2: take_gradients > " in output


if __name__ == "rank":
    act(*globals()["ARGUMENTS"])
