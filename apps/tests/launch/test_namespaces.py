"""Two nodes as far apart as one machine allows: each with a network, a name and mounts of its own.

What differs between them is mounted over the second one's folders. Skipped where the system makes no such spaces.
"""

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from two_nodes import SIZES, Nodes, end_of, stop_kill_and_end, write_tiny_run

HOSTS = {"alpha": "10.77.0.1", "beta": "10.77.0.2"}
PORT = 29500  # nobody else listens in these networks
StartNodes = Callable[..., Nodes]


@pytest.fixture
def start_nodes(tmp_path: Path) -> Iterator[StartNodes]:
    """Give a function that starts launchers on both nodes, and in the second one after further lines of a shell."""
    if shutil.which("ip") is None or shutil.which("unshare") is None:
        pytest.skip("there is no `ip` or no `unshare`")
    spaces = {host: f"longrl-{host}-{os.getpid()}" for host in HOSTS}
    first, second = spaces.values()
    made = [
        subprocess.run(["ip", "netns", "add", space], capture_output=True, check=False) for space in spaces.values()
    ]
    commands = [f"ip link add one netns {first} type veth peer name two netns {second}"]
    for (host, space), link in zip(spaces.items(), ("one", "two"), strict=True):
        commands += [f"ip -n {space} address add {HOSTS[host]}/24 dev {link}"]
        commands += [f"ip -n {space} link set {name} up" for name in (link, "lo")]
    commands += [f"ip netns exec {space} unshare --mount --uts hostname {host}" for host, space in spaces.items()]
    try:
        made += [subprocess.run(command.split(), capture_output=True, check=False) for command in commands]
        failed = [one.stderr.decode().strip() for one in made if one.returncode]
        if failed:
            pytest.skip(f"no networks of their own can be made here: {failed[0]}")
        hosts = tmp_path / "hosts"
        hosts.write_text("127.0.0.1 localhost\n" + "".join(f"{place} {host}\n" for host, place in HOSTS.items()))

        def start(
            folder: Path, *options: str, sizes: list[str] = SIZES, before: Mapping[str, str] | None = None
        ) -> Nodes:
            nodes = Nodes()
            for node, (host, space) in enumerate(spaces.items()):
                launch = [sys.executable, "-m", "longrl", "launch", "sft.toml", *sizes, *options]
                launch += ["--address", f"alpha:{PORT}", "--node-rank", str(node)]
                lines = [
                    "set -e",
                    f"hostname {host}",
                    f"mount --bind {hosts} /etc/hosts",
                    f"cd {shlex.quote(str(folder))}",
                    (before or {}).get(host, ""),
                    f"exec {shlex.join(launch)}",
                ]
                nodes.append(
                    subprocess.Popen(
                        ["ip", "netns", "exec", space, "unshare", "--mount", "--uts", "bash", "-c", "\n".join(lines)],
                        env=os.environ | {"OMP_NUM_THREADS": "1"},
                        stdout=subprocess.DEVNULL,
                        stderr=subprocess.PIPE,
                        text=True,
                    )
                )
            return nodes

        yield start
    finally:
        for space in spaces.values():
            subprocess.run(["ip", "netns", "delete", space], capture_output=True, check=False)


@pytest.mark.long
@pytest.mark.timeout(1500)
def test_nodes_with_networks_of_their_own_are_stopped_killed_and_end(tmp_path, start_nodes):
    write_tiny_run(tmp_path)
    stop_kill_and_end(tmp_path, lambda *options: start_nodes(tmp_path, *options), host="beta")


STAND_IN = """#!/bin/sh
# Stands in for the driver's own program, on a machine without a GPU.
for index in 0 1; do echo "$index, GPU-$index, NVIDIA H100 80GB HBM3, 81559, 81000, 580.65.06"; done
"""
DIFFERENCES = """
mount -t tmpfs none model
mount -t tmpfs none embeddings
mount -t tmpfs -o size=64k none run
export CUDA_VISIBLE_DEVICES=0
"""


@pytest.mark.long
def test_what_one_node_lacks_is_a_line_each_and_nothing_is_started(tmp_path, start_nodes):
    """No checkpoint, its own folders, one of them on a full disk, and fewer GPUs; the other node has all."""
    write_tiny_run(tmp_path)
    for name in ("embeddings", "run"):
        (tmp_path / name).mkdir()
    (tmp_path / "nvidia-smi").write_text(STAND_IN)
    (tmp_path / "nvidia-smi").chmod(0o755)
    path = 'export PATH="$PWD:$PATH"\n'
    before = {"alpha": path, "beta": path + DIFFERENCES}
    codes, (first, second) = end_of(start_nodes(tmp_path, sizes=["--gpus", "2", "--nodes", "2"], before=before))
    assert codes == [1, 1], (first, second)
    problems = [line.removeprefix("error: ") for line in first.splitlines() if line.startswith("error: ")]
    expected = (
        "1 GPUs are seen, expected --gpus 2; lower it, or look at CUDA_VISIBLE_DEVICES",
        f"{tmp_path}/run: can't be written (No space left on device); expected room for the run, free some space",
        "model: has neither config.json nor model_index.json; expected a checkpoint, set `model.folder`",
        f"{tmp_path}/run: what node 0 writes there doesn't show up within 15 s; put `output` on a file system",
        f"{tmp_path}/embeddings: what node 0 writes there doesn't show up within 15 s; put `model.store` on",
    )
    assert len(problems) == len(expected), problems
    for problem, words in zip(problems, expected, strict=True):
        assert problem.startswith(f"node 1 (beta): {words}")
    assert first.splitlines()[-1] == f"nothing was started: {len(expected)} problems"
    assert second.splitlines()[-1] == f"nothing was started: {len(expected)} problems, which node 0 lists"
    assert not list((tmp_path / "run").iterdir())
