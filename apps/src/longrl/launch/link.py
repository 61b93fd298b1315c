"""How the launchers of all nodes talk: small JSON values in a store of torch's on the first node.

It carries the findings of the preflight, and during the run who has failed: torchrun with fixed places tells nobody, so
that ranks elsewhere would wait for each other's exchange until their patience is over. A launcher that is killed, or
whose node is, stops showing signs of life, which the others notice.
"""

import json
import os
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from ipaddress import ip_address
from time import monotonic, sleep
from typing import Any

import torch.distributed as dist

from longrl.errors import AppError, AppUsageError
from longrl.launch.job import NodeAddress
from longrl_files.json_text import UnfitJsonError, parse_json
from longrl_files.messages import visible

__all__ = ["LifeWatch", "NodeLink", "quiet_network"]

PATIENCE_SECONDS = 900.0
"""How long a node waits for the others to be started; as long as torchrun does."""
CALL_SECONDS = 5.0
LOOK_SECONDS = 0.1
BEAT_SECONDS = 2.0
SILENCE_SECONDS = 40.0
"""A launcher that shows no sign of life for so long is gone."""
LEAVE_SECONDS = 10.0


def quiet_network(host: str) -> dict[str, str]:
    """The environment in which gloo doesn't look for this machine's name, where all is on this machine."""
    try:
        is_loopback = host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        is_loopback = False
    return {} if not is_loopback or "GLOO_SOCKET_IFNAME" in os.environ else {"GLOO_SOCKET_IFNAME": "lo"}


class NodeLink:
    """A node's connection to the others.

    Args:
        node_rank: Which node this is; the first one holds the store.
        num_nodes: How many there are.
        address: Where the first one listens; None for a single node, which nobody else connects to.
        patience_seconds: How long to wait for the others.

    Raises:
        AppUsageError: The port isn't free, or the first node isn't there.
    """

    def __init__(
        self,
        node_rank: int,
        num_nodes: int,
        address: NodeAddress | None,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> None:
        self.node_rank, self.num_nodes = node_rank, num_nodes
        self._patience_seconds = patience_seconds
        self.host = "127.0.0.1" if address is None else address.host
        port = 0 if address is None else address.port
        self._store = self._open(port)
        self.port = self._store.port

    def _open(self, port: int) -> dist.TCPStore:
        """Open the store or connect to it, again and again for a short time, so that an interruption is heard."""
        place = f"--address {self.host}:{port}"
        try:
            socket.getaddrinfo(self.host, port)
        except OSError as error:
            raise AppUsageError(f"{place}: no machine of this name is known here ({error.strerror})") from None
        if self.node_rank == 0 and port and not _is_free(port + 1):
            raise AppUsageError(
                f"{place}: port {port + 1}, which torchrun uses, is in use; choose another port, on all nodes"
            )
        deadline = monotonic() + self._patience_seconds
        while True:
            try:
                return dist.TCPStore(
                    self.host,
                    port,
                    is_master=self.node_rank == 0,
                    wait_for_workers=False,
                    timeout=timedelta(seconds=CALL_SECONDS),
                )
            except (RuntimeError, ValueError) as error:
                if self.node_rank == 0:
                    reason = "the port is in use" if "EADDRINUSE" in str(error) else visible(str(error))
                    raise AppUsageError(f"{place}: {reason}; choose another port, on all nodes") from None
            if monotonic() > deadline:
                raise AppUsageError(
                    f"{place}: node 0 didn't answer within {self._patience_seconds:g} s; start the same command there, "
                    "with --node-rank 0, and let no firewall stand between"
                )

    def exchange(self, name: str, value: Any) -> list[Any]:
        """The value of every node; all call this together.

        Raises:
            AppError: A node doesn't come, or the connection broke.
        """
        self.tell(f"{name}/{self.node_rank}", value)
        keys = [f"{name}/{node}" for node in range(self.num_nodes)]
        deadline = monotonic() + self._patience_seconds
        while not self._has(*keys):
            if monotonic() > deadline:
                missing = ", ".join(str(node) for node, key in enumerate(keys) if not self._has(key))
                raise AppError(
                    f"node {missing} didn't come within {self._patience_seconds:g} s; start the same command on every "
                    f"node, with --node-rank 0 to {self.num_nodes - 1}"
                )
            sleep(LOOK_SECONDS)
        return [self.ask(key) for key in keys]

    def tell(self, key: str, value: Any) -> None:
        """Write a value for the others.

        Raises:
            AppError: The connection broke.
        """
        self._call(lambda: self._store.set(key, json.dumps(value)))

    def ask(self, key: str) -> Any:
        """A value that was told; None if it wasn't.

        Raises:
            AppError: The connection broke, or it is no value of ours.
        """
        if not self._has(key):
            return None
        try:
            return parse_json(self._call(lambda: self._store.get(key)))
        except UnfitJsonError as error:
            raise AppError(f"--address {self.host}:{self.port}: somebody else writes there ({error})") from error

    def count(self, key: str) -> int:
        """Count one more under a key, for all nodes; returns the new number."""
        return int(self._call(lambda: self._store.add(key, 1)))

    def leave(self) -> None:
        """Say that this node needs the others no more; the first one waits a little, because it holds the store."""
        try:
            self.tell(f"left/{self.node_rank}", True)
            deadline = monotonic() + LEAVE_SECONDS
            keys = [f"left/{node}" for node in range(self.num_nodes)]
            while self.node_rank == 0 and not self._has(*keys) and monotonic() < deadline:
                sleep(LOOK_SECONDS)
        except AppError:
            return  # the first node has left already

    def _has(self, *keys: str) -> bool:
        return bool(self._call(lambda: self._store.check(list(keys))))

    def _call(self, function: Callable[[], Any]) -> Any:
        try:
            return function()
        except RuntimeError as error:
            raise AppError(f"node 0 at {self.host}:{self.port} is gone ({visible(str(error), 80)})") from None


class LifeWatch:
    """Shows that this node lives, and notices when another one fails, is gone or ends, within a `with` block.

    Args:
        link: The connection.
        on_trouble: Called once, from a thread, with what another node told of its failure.
    """

    def __init__(self, link: NodeLink, on_trouble: Callable[[dict[str, Any]], None]) -> None:
        self._link, self._on_trouble = link, on_trouble
        self._ended = threading.Event()
        self._others = [node for node in range(link.num_nodes) if node != link.node_rank]
        self._thread = threading.Thread(target=self._follow, name="life watch", daemon=True)

    def __enter__(self) -> "LifeWatch":
        """Begin."""
        if self._others:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End."""
        self._ended.set()
        if self._others:
            self._thread.join()

    def tell_end(self, failure: dict[str, Any] | None) -> dict[str, Any] | None:
        """Tell the others that this node's ranks have ended; well, if there is no failure.

        Returns:
            The failure that was told first by any node, which is the cause of the others; None without any here.
        """
        first = failure
        with suppress(AppError):  # those who could hear it are gone
            if failure is not None:
                number = self._link.count("failures")
                self._link.tell(f"failure/{number}", failure)
                deadline = monotonic() + LOOK_SECONDS * 10
                while not (told := self._link.ask("failure/1")) and monotonic() < deadline:
                    sleep(LOOK_SECONDS)
                first = told if isinstance(told, dict) else failure
            self._link.tell(f"ended/{self._link.node_rank}", {"failure": first})
        return first

    def _follow(self) -> None:
        beats: dict[int, tuple[int, float]] = {}
        while not self._ended.wait(BEAT_SECONDS):
            try:
                trouble = self._look(beats)
            except AppError as error:
                trouble = _gone(0, str(error))
            if trouble is not None:
                self._on_trouble(trouble)
                return

    def _look(self, beats: dict[int, tuple[int, float]]) -> dict[str, Any] | None:
        now = monotonic()
        self._link.tell(f"beat/{self._link.node_rank}", self._link.count("beats"))
        for node in self._others:
            ended = self._link.ask(f"ended/{node}")
            if isinstance(ended, dict):
                if ended.get("failure") is not None:
                    return dict(ended["failure"])
                continue
            beat = self._link.ask(f"beat/{node}")
            number = beat if isinstance(beat, int) else -1
            known, since = beats.get(node, (None, now))
            beats[node] = (number, since if number == known else now)
            if now - beats[node][1] > SILENCE_SECONDS:
                line = f"node {node} shows no sign of life for {SILENCE_SECONDS:g} s; its launcher was killed, perhaps"
                return _gone(node, line)
        return None


def _is_free(port: int) -> bool:
    """Whether a port of this machine can be listened to."""
    with socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind(("", port))
        except OSError:
            return False
    return True


def _gone(node: int, line: str) -> dict[str, Any]:
    """The failure of a node that can't tell of it itself."""
    return {"node": node, "lines": [line], "code": AppError.exit_code, "is_gone": True}
