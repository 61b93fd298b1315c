"""A tiny run on two nodes, however they are made: stopped, killed, and brought to an end by the same command."""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from longrl.corpus import corpus_of_stories
from longrl.tiny_model import TinyModelSettings, build_tiny_model
from longvideo_reason_data.records.record import Split
from longvideo_reason_data.timeline.dataset import write_timeline_dataset
from longvideo_reason_data.timeline.world import WorldSettings

Nodes = list[subprocess.Popen[str]]
"""What the user has started: a launcher for each node, or one command for both."""

RECIPE = """
output = "run"
epochs = 1000
rows_per_step = 2
questions_per_row = 2
learning_rate = 1e-3
checkpoint_every_steps = 1000
tracker = "none"
[model]
folder = "model"
store = "embeddings"
[data]
dataset = "dataset"
split = "train_sft"
num_frames = 2
"""
STEPS_PER_EPOCH = 1
SIZES = ["--device", "cpu", "--gpus", "1", "--nodes", "2"]


def has_networks() -> bool:
    """Whether networks of their own can be made here, for nodes further apart than on one loopback."""
    if shutil.which("ip") is None or shutil.which("unshare") is None:
        return False
    probe = f"longrl-probe-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, check=False)
    subprocess.run(["ip", "netns", "delete", probe], capture_output=True, check=False)
    return made.returncode == 0


def write_tiny_run(folder: Path) -> None:
    """Write a model, a dataset and `sft.toml`."""
    world = WorldSettings(
        seconds=16.0, num_scenes=4, scene_seconds=2.0, num_characters=4, frames_per_second=2, size_pixels=64
    )
    videos = {Split.TRAIN_SFT: 2, Split.TRAIN_RL: 0, Split.HELD_OUT: 0}
    write_timeline_dataset(folder / "dataset", world, videos=videos, questions_per_video=2, seed=0)
    sizes = TinyModelSettings(
        hidden_size=64,
        num_layers=2,
        num_heads=2,
        num_key_value_heads=1,
        intermediate_size=128,
        vocabulary_size=512,
        vision_hidden_size=32,
        vision_num_heads=2,
        vision_depth=1,
        frame_pixels=3136,
    )
    build_tiny_model(folder / "model", corpus_of_stories(), sizes, seed=0)
    (folder / "sft.toml").write_text(RECIPE)


def end_of(nodes: Nodes, seconds: float = 400.0) -> tuple[list[int], list[str]]:
    """Exit statuses and error streams."""
    try:
        outputs = [node.communicate(timeout=seconds)[1] for node in nodes]
    finally:
        for node in nodes:
            node.kill()
    return [node.returncode for node in nodes], outputs


def steps_in(folder: Path) -> list[int]:
    path = folder / "run" / "metrics.jsonl"
    return [json.loads(line)["step"] for line in path.read_text().splitlines()] if path.exists() else []


def wait_for(condition: Callable[[], bool], nodes: Nodes) -> None:
    deadline = time.monotonic() + 400.0
    while not condition():
        if time.monotonic() > deadline or any(node.poll() is not None for node in nodes):
            pytest.fail(f"ended or too slow: {end_of(nodes, 1.0)}")
        time.sleep(0.1)


def find_rank(folder: Path, rank: int) -> int:
    """The process of a rank that works in a folder."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words, variables = ((process / name).read_bytes().split(b"\0") for name in ("cmdline", "environ"))
            is_here = (process / "cwd").samefile(folder)
        except OSError:  # it has ended
            continue
        if is_here and b"longrl.launch.rank" in words and f"RANK={rank}".encode() in variables:
            return int(process.name)
    pytest.fail(f"no process is rank {rank}")


def stop_kill_and_end(
    folder: Path,
    start: Callable[..., Nodes],
    *,
    host: str,
    stop: signal.Signals = signal.SIGUSR1,
    is_killed: bool = True,
) -> None:
    """Each start is the same command; only the length differs at last, and what needn't be looked at again.

    Args:
        folder: With what `write_tiny_run` writes.
        start: Starts `longrl launch sft.toml` with further options.
        host: The name of the second node's machine.
        stop: The signal to stop it with.
        is_killed: Whether a rank is killed in between.
    """
    nodes = start()
    wait_for(lambda: len(steps_in(folder)) >= 2, nodes)
    nodes[0].send_signal(stop)  # one node is enough, since ranks agree to stop
    codes, outputs = end_of(nodes)
    assert set(codes) == {75}, outputs
    lines = outputs[0].splitlines()
    assert "longrl sft sft.toml: 2 ranks on the CPU of each of 2 nodes" in lines
    assert "looking at what is there, before anything is started (--no-preflight leaves that out)" in lines
    assert "started 2 ranks, which now load what they need; all they say is in " in outputs[0]
    assert f"node 1 ({host}): " in outputs[0]
    assert "all-reduce over gloo: 2 ranks, " in outputs[0]
    assert "[rank 0] run: stopped by SIGUSR1 after step" in outputs[0]
    assert lines[-1] == "saved and stopped; the same command goes on from there"
    done = steps_in(folder)[-1]
    assert [path.name for path in (folder / "run" / "checkpoints").iterdir()] == [f"step-{done:06d}"]

    if is_killed:
        kill_a_rank(folder, start("--no-preflight"), host=host, done=done)
    epochs = -(-(done + 2) // STEPS_PER_EPOCH)
    codes, outputs = end_of(start("--no-preflight", "--epochs", str(epochs)))
    assert set(codes) == {0}, outputs
    assert steps_in(folder) == list(range(1, epochs * STEPS_PER_EPOCH + 1))
    assert (folder / "run" / "result.json").exists()
    starts = sorted((folder / "run" / "logs").iterdir())
    assert [sorted(path.name for path in one.iterdir()) for one in starts] == [
        ["rank-0.err", "rank-0.out", "rank-1.err", "rank-1.out"]
    ] * (2 + is_killed)


def kill_a_rank(folder: Path, nodes: Nodes, *, host: str, done: int) -> None:
    """Kill the rank of the second node after a step; all end soon and say why."""
    wait_for(lambda: steps_in(folder)[-1] > done, nodes)
    killed = time.monotonic()
    os.kill(find_rank(folder, 1), signal.SIGKILL)
    codes, outputs = end_of(nodes)
    assert time.monotonic() - killed < 60.0
    assert set(codes) == {137}, outputs
    for output in outputs:
        assert f"rank 1 on node 1 ({host}) was killed by SIGKILL" in output
        assert "Traceback" not in output
