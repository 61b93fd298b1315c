"""Killed again and again, at random moments and while saving, a run makes the steps that it would have made anyway.

The processes are forked from one that has imported everything, so that they are at work at once.
"""

import multiprocessing
import random
import time
from pathlib import Path
from typing import Any

import pytest

from longrl_trainer.config.stages import GrpoConfig, SftConfig
from longrl_trainer.grpo import train_grpo
from longrl_trainer.runs.journal import read_json_lines
from longrl_trainer.runs.step_meter import PASSING
from longrl_trainer.sft import train_sft
from longrl_trainer.training.checkpoints import list_checkpoints

NUM_KILLS = 10
STEPS = 12


def start(config: SftConfig | GrpoConfig) -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["longrl_trainer.sft", "longrl_trainer.grpo", "mrsp_engine.tiny.families"])
    process = context.Process(target=train_sft if isinstance(config, SftConfig) else train_grpo, args=(config,))
    process.start()
    return process


def lines_of(output: Path) -> list[dict[str, Any]]:
    lines = read_json_lines(output / "metrics.jsonl")
    return [{name: value for name, value in line.items() if name not in PASSING} for line in lines]


def weights_of(output: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (output / "model").glob("*.safetensors")}


def wait_for(path: Path) -> None:
    while not path.exists():
        time.sleep(0.001)


def kill_while_saving(process: Any, checkpoints: Path, draw: random.Random) -> bool:
    """Kill when a checkpoint has begun to be written, and some time later."""
    while process.is_alive():
        if any(".partial-" in path.name for path in (checkpoints.iterdir() if checkpoints.is_dir() else ())):
            time.sleep(draw.choice((0.0, 0.002, 0.005, 0.01, 0.02)))
            break
        time.sleep(0.0005)
    process.kill()
    process.join()
    return any(".partial-" in path.name for path in checkpoints.iterdir())


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("stage", ["sft", "grpo"])
def test_a_run_killed_again_and_again_makes_the_same_steps(started, tmp_path, stage):
    draw = random.Random(stage)
    options: dict[str, Any] = {"checkpoint_every_steps": 1}
    if stage == "sft":
        options |= {"epochs": STEPS // 2}
    else:
        options |= {"steps": STEPS, "max_response_tokens": 24, "kl_coefficient": 0.01}
    make = started.sft if stage == "sft" else started.grpo
    whole, broken = (make(tmp_path / name, **options) for name in ("whole", "broken"))
    process = start(whole)
    wait_for(whole.output / ".owner")
    begun = time.monotonic()
    process.join()
    assert process.exitcode == 0
    seconds = time.monotonic() - begun

    num_kills = num_half_written = 0
    reached = [0]
    while num_kills < NUM_KILLS:
        process = start(broken)
        if num_kills % 2:
            num_half_written += kill_while_saving(process, broken.output / "checkpoints", draw)
        else:
            wait_for(broken.output / ".owner")
            process.join(timeout=draw.uniform(0.0, seconds / 2))
            process.kill()
            process.join()
        (broken.output / ".owner").unlink(missing_ok=True)
        if (broken.output / "result.json").exists():
            break
        num_kills += 1
        reached.append(max((found.step for found in list_checkpoints(broken.output)), default=0))
    assert reached == sorted(reached)  # no checkpoint is ever lost
    assert num_kills > 2
    assert num_half_written
    process = start(broken)
    process.join()
    assert process.exitcode == 0
    assert lines_of(broken.output) == lines_of(whole.output)
    assert [line["step"] for line in lines_of(broken.output)] == list(range(1, STEPS + 1))
    assert weights_of(broken.output) == weights_of(whole.output)
    assert not any(".partial-" in path.name for path in (broken.output / "checkpoints").iterdir())
