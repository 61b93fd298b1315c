"""A start on a Ray cluster: two nodes of one machine that Ray Train fills, and clusters that can't be used."""

import os
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from two_nodes import SIZES, Nodes, stop_kill_and_end, write_tiny_run

from longrl.cli import main

RECIPES = Path(__file__).parents[2] / "recipes"
QUIET = {"OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Give the address of a cluster of two nodes with one processor each."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_worker_niceness", "0")  # of 15 by default, at which nothing runs on a busy machine
    pytest.importorskip("ray.train")
    from ray.cluster_utils import Cluster

    running = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    running.add_node(num_cpus=1)
    yield running.address
    running.shutdown()


def start_on_ray(folder: Path, address: str, *options: str) -> Nodes:
    return [
        subprocess.Popen(
            [sys.executable, "-m", "longrl", "launch", "sft.toml", "--ray", *SIZES, *options],
            cwd=folder,
            env=os.environ | QUIET | {"RAY_ADDRESS": address},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            # Tests in the background of a shell ignore interrupts, and so would their child processes.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
    ]


@pytest.mark.long
@pytest.mark.timeout(1500)
def test_a_run_on_a_ray_cluster_is_stopped_and_ends(tmp_path, cluster):
    """Also one that is larger than the cluster is refused, before anything is started."""
    write_tiny_run(tmp_path)
    (refused,) = start_on_ray(tmp_path, cluster, "--nodes", "3")
    *_, line = refused.communicate(timeout=200.0)[1].splitlines()
    assert refused.returncode == 2
    assert line == (
        "error: --nodes 3 and --gpus 1 with --ray: the cluster has 2 nodes with 1 CPU or more (its nodes have 1, 1); "
        "lower them, or add nodes"
    )
    stop_kill_and_end(
        tmp_path,
        lambda *options: start_on_ray(tmp_path, cluster, *options),
        host=socket.gethostname(),
        stop=signal.SIGINT,
        is_killed=False,  # the launcher's doing, as without Ray; every start on a cluster takes a minute
    )


@pytest.mark.parametrize(
    ("arguments", "address", "words"),
    [
        (["--slurm"], "", "--slurm with --ray: expected without, since Ray finds machines itself"),
        (["--address", "a:29500"], "", "--address with --ray: expected without"),
        (["--node-rank", "1", "--nodes", "2"], "", "--node-rank with --ray: expected without"),
        ([], "ray://head:10001", "RAY_ADDRESS='ray://head:10001': expected HOST:PORT of a cluster's first node"),
        ([], "127.0.0.1:1", "RAY_ADDRESS=127.0.0.1:1: no Ray cluster answers there ([Errno 111] Connection refused)"),
    ],
)
def test_clusters_that_cannot_be_used_get_one_line(arguments, address, words, capsys, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", address)
    recipe = str(RECIPES / "qwen2_5_vl_3b_grpo.toml")
    assert main(["launch", recipe, "--gpus", "1", "--ray", *arguments]) == 2
    *before, line = capsys.readouterr().err.splitlines()
    assert words in line
    assert before == [f"longrl grpo {recipe}: joining the Ray cluster"] * bool(address)


def test_without_ray_train_it_is_said_what_to_install(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert main(["launch", str(RECIPES / "qwen2_5_vl_3b_grpo.toml"), "--gpus", "1", "--ray"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith("; install longrl[ray]")


def test_what_every_node_of_a_cluster_would_run_is_printed(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    monkeypatch.chdir(tmp_path)
    recipe = str(RECIPES / "qwen2_5_vl_7b_grpo.toml")
    assert main(["launch", recipe, "--nodes", "2", "--gpus", "8", "--ray", "--no-preflight", "--print"]) == 0
    request, line = capsys.readouterr().out.splitlines()
    assert request == f"# Ray cluster of head:6379: 8 GPUs on 2 nodes, each in {tmp_path}"
    words = shlex.split(line)
    assert words[2:] == [
        *("longrl.launch.rank", "SIGTERM", "launch", recipe, "--nodes", "2", "--gpus", "8", "--device", "cuda"),
        *("--no-preflight", "--node-rank", "NODE", "--address", "HOST:PORT"),
    ]
    assert list(tmp_path.iterdir()) == []
