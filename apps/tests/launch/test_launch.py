"""Two nodes on one machine, each with a launcher of its own: stopped, killed, and brought to an end."""

import contextlib
import os
import random
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from two_nodes import SIZES, Nodes, has_networks, stop_kill_and_end, write_tiny_run


def free_port() -> int:
    """One whose next is free too, below those that systems hand to connections, so that none takes it meanwhile."""
    for port in random.sample(range(20_000, 30_000, 2), 100):
        with socket.socket() as one, socket.socket() as other, contextlib.suppress(OSError):
            one.bind(("127.0.0.1", port))
            other.bind(("127.0.0.1", port + 1))
            return port
    pytest.fail("no two ports in a row are free")


def start_nodes(folder: Path, *options: str) -> Nodes:
    command = [sys.executable, "-m", "longrl", "launch", "sft.toml", *SIZES]
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


@pytest.mark.long
@pytest.mark.timeout(1500)
@pytest.mark.skipif(has_networks(), reason="two nodes with networks of their own are, in test_namespaces.py")
def test_two_nodes_are_stopped_killed_and_end(tmp_path):
    write_tiny_run(tmp_path)
    stop_kill_and_end(tmp_path, lambda *options: start_nodes(tmp_path, *options), host=socket.gethostname())
