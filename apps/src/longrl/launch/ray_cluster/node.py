"""What Ray Train runs on every node: the launcher, whose words and end are passed on, and that is stopped on request.

The launcher is a process of its own, since a rank's program takes signals, which reach only a main thread, and Ray runs
this function in another one. It gets SIGTERM from the system when Ray's worker is gone.
"""

import contextlib
import os
import random
import signal
import socket
import subprocess
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from longrl.launch.job import python_command
from longrl_files.messages import error_line

__all__ = ["NodeOrder", "launcher_arguments", "run_node"]

TELL_SECONDS = 0.5
RAYS_OWN = (
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT"),
    *("OMP_NUM_THREADS", "ACCELERATE_TORCH_DEVICE"),
)
"""Variables that Ray sets for its workers, and that would mean something else to a launcher."""
PORTS = range(20_000, 30_000, 2)
"""Below those that systems give to connections."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeOrder:
    """What every node is to do.

    Attributes:
        folder: The working directory.
        arguments: Those of `longrl`, without what differs between nodes.
        num_nodes: How many nodes there are.
        stop_signal: The signal at which a launcher stops its ranks.
        mailbox: The actor for what is told; see `Mailbox`.
    """

    folder: str
    arguments: tuple[str, ...]
    num_nodes: int
    stop_signal: str
    mailbox: Any


def launcher_arguments(order: NodeOrder, node: int | str, address: str) -> list[str]:
    """The arguments of Python with which a node's launcher is started."""
    own = ["--node-rank", str(node), "--address", address] if order.num_nodes > 1 else []
    return ["-m", "longrl.launch.rank", "SIGTERM", *order.arguments, *own]


def run_node(config: Mapping[str, NodeOrder]) -> None:
    """Run this node's launcher to its end; the function of Ray Train's workers.

    Args:
        config: The `order`.
    """
    import ray
    import torch.distributed as dist

    order, node = config["order"], int(os.environ["RANK"])
    problem = None
    if not Path(order.folder).is_dir():
        problem = (
            f"node {node} ({socket.gethostname()}): {order.folder}: there is no such folder; start in a shared one"
        )
    found: list[Any] = [None] * order.num_nodes
    dist.all_gather_object(found, (_free_port(), problem))
    problems = [one for _, one in found if one is not None]
    if problems:
        ray.get(order.mailbox.tell.remote(node, [("err", error_line(one)) for one in problems]))
        ray.get(order.mailbox.end.remote(node, 1))
        return
    host = os.environ["MASTER_ADDR"]
    address = f"{f'[{host}]' if ':' in host else host}:{found[0][0]}"
    environment = {name: value for name, value in os.environ.items() if name not in RAYS_OWN}
    environment.update(ray.get(order.mailbox.environment.remote()))
    launcher = subprocess.Popen(
        python_command(launcher_arguments(order, node, address)),
        cwd=order.folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    try:
        code = _follow(launcher, order, node)
    finally:
        launcher.terminate()
    ray.get(order.mailbox.end.remote(node, 128 - code if code < 0 else code))


def _follow(launcher: subprocess.Popen[str], order: NodeOrder, node: int) -> int:
    """Pass on what is said, and the request to stop, until the launcher has ended; returns its exit status."""
    import ray

    said: deque[tuple[str, str]] = deque()
    readers = [
        threading.Thread(target=_read, args=(stream, name, said), daemon=True)
        for name, stream in (("out", launcher.stdout), ("err", launcher.stderr))
    ]
    for reader in readers:
        reader.start()
    is_told = False
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            launcher.wait(TELL_SECONDS)
        has_ended = launcher.returncode is not None
        for reader in readers if has_ended else ():
            reader.join(TELL_SECONDS)
        lines = [said.popleft() for _ in range(len(said))]
        is_stop_asked = ray.get(order.mailbox.tell.remote(node, lines))
        if has_ended:
            return int(launcher.returncode)
        if is_stop_asked and not is_told:
            launcher.send_signal(signal.Signals[order.stop_signal])
            is_told = True


def _read(stream: IO[str] | None, name: str, said: deque[tuple[str, str]]) -> None:
    assert stream is not None
    for line in stream:
        said.append((name, line.rstrip("\n")))


def _free_port() -> int:
    """One that is free here together with the next, which torchrun uses."""
    for port in random.sample(PORTS, 100):
        with socket.socket() as one, socket.socket() as other, contextlib.suppress(OSError):
            one.bind(("", port))
            other.bind(("", port + 1))
            return port
    return PORTS.start
