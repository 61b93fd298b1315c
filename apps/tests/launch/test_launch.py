"""Two nodes on one machine, each with a launcher of its own: stopped, killed, and brought to an end."""

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from longrl.corpus import corpus_of_stories
from longrl.tiny_model import TinyModelSettings, build_tiny_model
from longvideo_reason_data.records.record import Split
from longvideo_reason_data.timeline.dataset import write_timeline_dataset
from longvideo_reason_data.timeline.world import WorldSettings

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


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    world = WorldSettings(
        seconds=16.0, num_scenes=4, scene_seconds=2.0, num_characters=4, frames_per_second=2, size_pixels=64
    )
    videos = {Split.TRAIN_SFT: 2, Split.TRAIN_RL: 0, Split.HELD_OUT: 0}
    write_timeline_dataset(tmp_path / "dataset", world, videos=videos, questions_per_video=2, seed=0)
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
    build_tiny_model(tmp_path / "model", corpus_of_stories(), sizes, seed=0)
    (tmp_path / "sft.toml").write_text(RECIPE)
    return tmp_path


def free_port() -> int:
    """One whose next is free too, below those that systems hand to connections, so that none takes it meanwhile."""
    for port in random.sample(range(20_000, 30_000, 2), 100):
        with socket.socket() as one, socket.socket() as other, contextlib.suppress(OSError):
            one.bind(("127.0.0.1", port))
            other.bind(("127.0.0.1", port + 1))
            return port
    pytest.fail("no two ports in a row are free")


def start_nodes(folder: Path, *options: str) -> list[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "longrl", "launch", "sft.toml", "--device", "cpu", "--gpus", "1", "--nodes", "2"]
    command += ["--address", f"127.0.0.1:{free_port()}", *options]
    return [
        subprocess.Popen(
            [*command, "--node-rank", str(node)],
            cwd=folder,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for node in (0, 1)
    ]


def end_of(nodes: list[subprocess.Popen[str]], seconds: float = 400.0) -> tuple[list[int], list[str]]:
    try:
        outputs = [node.communicate(timeout=seconds)[1] for node in nodes]
    finally:
        for node in nodes:
            node.kill()
    return [node.returncode for node in nodes], outputs


def steps_in(folder: Path) -> list[int]:
    path = folder / "run" / "metrics.jsonl"
    return [json.loads(line)["step"] for line in path.read_text().splitlines()] if path.exists() else []


def wait_for(condition: Callable[[], bool], nodes: list[subprocess.Popen[str]]) -> None:
    deadline = time.monotonic() + 400.0
    while not condition():
        if time.monotonic() > deadline or any(node.poll() is not None for node in nodes):
            pytest.fail(f"ended or too slow: {end_of(nodes, 1.0)}")
        time.sleep(0.1)


@pytest.mark.long
@pytest.mark.timeout(1500)
def test_two_nodes_are_stopped_killed_and_end(folder):
    """Each start is the same command; only the length differs at last, and what needn't be looked at again."""
    nodes = start_nodes(folder)
    wait_for(lambda: len(steps_in(folder)) >= 2, nodes)
    nodes[0].send_signal(signal.SIGUSR1)  # one node is enough, since ranks agree to stop
    codes, outputs = end_of(nodes)
    assert codes == [75, 75], outputs
    assert outputs[0].splitlines()[0] == "longrl sft sft.toml: 2 ranks on the CPU of each of 2 nodes"
    assert "looking at what is there, before anything is started (--no-preflight leaves that out)" in outputs[0]
    assert "started 2 ranks, which now load what they need; all they say is in " in outputs[0]
    assert "node 1 (" in outputs[0]
    assert "all-reduce over gloo: 2 ranks, " in outputs[0]
    assert "[rank 0] run: stopped by SIGUSR1 after step" in outputs[0]
    assert outputs[0].splitlines()[-1] == "saved and stopped; the same command goes on from there"
    done = steps_in(folder)[-1]
    assert [path.name for path in (folder / "run" / "checkpoints").iterdir()] == [f"step-{done:06d}"]

    nodes = start_nodes(folder, "--no-preflight")
    wait_for(lambda: steps_in(folder)[-1] > done, nodes)
    (rank,) = map(int, Path(f"/proc/{nodes[1].pid}/task/{nodes[1].pid}/children").read_text().split())
    killed = time.monotonic()
    os.kill(rank, signal.SIGKILL)
    codes, outputs = end_of(nodes)
    assert time.monotonic() - killed < 60.0
    assert codes == [137, 137], outputs
    for output in outputs:
        assert f"rank 1 on node 1 ({socket.gethostname()}) was killed by SIGKILL" in output
        assert "Traceback" not in output

    epochs = -(-(done + 2) // STEPS_PER_EPOCH)
    codes, outputs = end_of(start_nodes(folder, "--no-preflight", "--epochs", str(epochs)))
    assert codes == [0, 0], outputs
    assert steps_in(folder) == list(range(1, epochs * STEPS_PER_EPOCH + 1))
    assert (folder / "run" / "result.json").exists()
    starts = sorted((folder / "run" / "logs").iterdir())
    assert [sorted(path.name for path in one.iterdir()) for one in starts] == [
        ["rank-0.err", "rank-0.out", "rank-1.err", "rank-1.out"]
    ] * 3
