"""The command's side of a start on a Ray cluster: it lets Ray Train start the launchers, follows them and stops them.

Ray Train waits in a thread, so that the main one hears signals: the first asks all launchers to save and stop.
"""

import logging
import os
import shlex
import signal
import socket
import sys
import tempfile
import threading
from collections import deque
from importlib import import_module
from pathlib import Path
from time import monotonic
from types import FrameType
from typing import Any

from longrl.errors import AppError, AppUsageError
from longrl.launch.job import LaunchJob, python_command
from longrl.launch.ray_cluster.mailbox import Mailbox, NodeNews
from longrl.launch.ray_cluster.node import NodeOrder, launcher_arguments, run_node
from longrl_files.messages import visible
from longrl_trainer.errors import StoppedError
from longvideo_reason_data.errors import brief

__all__ = ["RayStart", "describe_ray_start"]

ADDRESS = "RAY_ADDRESS"
CONNECT_SECONDS = 5.0
LOOK_SECONDS = 0.3
MOST_WORDS = 20
END_SECONDS = 90.0
"""How long the other nodes may take when one has ended badly; their launchers end their ranks within less."""
PASSED_ON = (
    *("LONGRL_", "NCCL_", "GLOO_", "HF_", "TORCH_", "VLLM_", "WANDB_", "XDG_"),
    *("OPENAI_API_KEY", "OMP_NUM_THREADS"),
)
"""The beginnings of the names of variables that launchers get from here; Ray itself passes none on."""


def describe_ray_start(job: LaunchJob, extra: tuple[str, ...]) -> list[str]:
    """What would be asked of the cluster, and what every node would run, as lines of a shell."""
    place = os.environ.get(ADDRESS, "this machine")
    order = _order(job, extra, None)
    arguments = launcher_arguments(order, "NODE", "HOST:PORT")
    return [
        f"# Ray cluster of {place}: {_describe(job)} on {_count_nodes(job.num_nodes)}, each in {order.folder}",
        shlex.join(python_command(arguments)),
    ]


class RayStart:
    """One start of a job on a cluster.

    Args:
        job: What to run; its nodes are those of the cluster with room for it.
        extra: Options of `longrl launch` for every node.

    Raises:
        AppUsageError: Ray isn't installed, there is no cluster, or it has too little.
    """

    def __init__(self, job: LaunchJob, extra: tuple[str, ...]) -> None:
        self._job, self._extra = job, extra
        self._ray = _join_cluster()
        self._asked: list[int] = []
        self._error: BaseException | None = None
        self._codes: dict[int, int] = {}
        self._has_started = False
        self._words: dict[int, deque[str]] = {}
        try:
            _check_room(job, self._ray.nodes())
        except AppUsageError:
            self._ray.shutdown()
            raise

    def run(self) -> int:
        """Run the job to its end.

        Returns:
            The status to exit with, as that of `longrl launch` on one node.

        Raises:
            AppError: The cluster failed.
        """
        from longrl.launch.finished import describe_finished

        job = self._job
        finished = describe_finished(job)
        if finished is not None:
            self._ray.shutdown()
            _say(finished)
            return 0
        names = {signal.SIGINT, signal.SIGTERM, signal.Signals[job.stop_signal]}
        before = {name: signal.signal(name, self._note) for name in names}
        try:
            _say(f"waiting until the Ray cluster has {_describe(job)} free on {_count_nodes(job.num_nodes)}")
            return self._follow()
        finally:
            self._ray.shutdown()
            for name, handler in before.items():
                signal.signal(name, handler)

    def _follow(self) -> int:
        ray, job = self._ray, self._job
        # Every node has a resource of its own name; a little of this one's keeps the actor beside this process.
        here = {f"node:{ray.util.get_node_ip_address()}": 0.001}
        environment = {name: value for name, value in os.environ.items() if name.startswith(PASSED_ON)}
        mailbox = ray.remote(num_cpus=0, resources=here)(Mailbox).remote(environment)
        order = _order(job, self._extra, mailbox)
        training = threading.Thread(target=self._train, args=(order,), name="ray train", daemon=True)
        training.start()
        is_told, ends_at = False, None
        while training.is_alive():
            training.join(LOOK_SECONDS)
            self._show(_collect(ray, mailbox))
            if self._asked and not self._has_started:
                return self._stopped_status(self._asked[0])
            if self._asked and not is_told:
                asked = "save and stop" if job.saves else "stop"
                _say(f"{signal.Signals(self._asked[0]).name} came: the ranks are asked to {asked}")
                ray.get(mailbox.ask_to_stop.remote())
                is_told = True
            if self._asked.count(signal.SIGINT) > 1:
                raise KeyboardInterrupt
            if any(self._codes.values()):
                ends_at = ends_at or monotonic() + END_SECONDS
                if monotonic() > ends_at:
                    break
        self._show(_collect(ray, mailbox))
        return self._judge()

    def _train(self, order: NodeOrder) -> None:
        """Let Ray Train run the launchers; called in a thread."""
        from ray.train import RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer

        job = self._job
        try:
            with tempfile.TemporaryDirectory(prefix="longrl-ray-") as folder:
                TorchTrainer(
                    run_node,
                    train_loop_config={"order": order},
                    torch_config=_torch_config(),
                    scaling_config=ScalingConfig(
                        num_workers=job.num_nodes,
                        use_gpu=job.device == "cuda",
                        resources_per_worker=_resources(job),
                        placement_strategy="STRICT_SPREAD",
                    ),
                    run_config=RunConfig(name=Path(folder).name, storage_path=folder),
                ).fit()
        except BaseException as error:  # shown by the main thread, whatever it is
            self._error = error

    def _show(self, news: NodeNews) -> None:
        """Show what the first node's launcher said, and keep the last words of the others, which mostly repeat it."""
        self._codes = news.codes
        for node, (stream, line) in news.lines:
            self._has_started = True
            if node == 0:
                print(visible(line, 399), file=sys.stdout if stream == "out" else sys.stderr, flush=True)
            else:
                self._words.setdefault(node, deque(maxlen=MOST_WORDS)).append(f"[node {node}] {visible(line, 399)}")

    def _judge(self) -> int:
        """The status of the failure that the launchers told each other."""
        job = self._job
        for node in sorted(self._words):
            if self._codes.get(node) != self._codes.get(0):
                _say("\n".join(self._words[node]))
        silent = [str(node) for node in range(job.num_nodes) if node not in self._codes]
        code = next((self._codes[node] for node in sorted(self._codes) if self._codes[node]), 0)
        if self._asked and code in (128 + signal.Signals[job.stop_signal], 0) and (code or silent):
            return self._stopped_status(self._asked[0])  # it came before a launcher listened
        if silent and not code:
            reason = "" if self._error is None else f" ({brief(self._error)})"
            raise AppError(f"the Ray cluster lost node {', '.join(silent)}{reason}; start the same command again")
        return code

    def _stopped_status(self, number: int) -> int:
        return StoppedError.exit_code if self._job.saves else 128 + number

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._asked.append(number)


def _join_cluster() -> Any:
    """Import Ray and join the cluster.

    Raises:
        AppUsageError: Ray isn't installed, or there is no cluster.
    """
    address = os.environ.get(ADDRESS) or "auto"
    cure = f"start one (`ray start --head`), or set {ADDRESS} to HOST:PORT of the one that this machine belongs to"
    host, _, port = address.rpartition(":")
    if address != "auto":
        if "/" in address or not host or not port.isdecimal():
            raise AppUsageError(f"{ADDRESS}={visible(address, 80)!r}: expected HOST:PORT of a cluster's first node")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
        except (OSError, OverflowError) as error:
            raise AppUsageError(f"{ADDRESS}={address}: no Ray cluster answers there ({brief(error)}); {cure}") from None
    # Under `uv run`, Ray would also start every worker with `uv run`, which sets up the environment for each.
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    try:
        import ray

        import_module("ray.train.torch")  # needs more than Ray's core
    except ImportError as error:
        raise AppUsageError(f"--ray needs Ray Train ({brief(error)}); install longrl[ray]") from None
    try:
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        if address == "auto":
            raise AppUsageError(f"--ray: no Ray cluster runs on this machine; {cure}") from None
        raise AppUsageError(f"{ADDRESS}={address}: this machine can't join ({brief(error)}); {cure}") from None
    return ray


def _check_room(job: LaunchJob, nodes: list[dict[str, Any]]) -> None:
    """Refuse a cluster that can never run the job.

    Raises:
        AppUsageError: Too few nodes have what it asks for.
    """
    ((kind, number),) = _resources(job).items()
    alive = [float(node["Resources"].get(kind, 0.0)) for node in nodes if node["Alive"]]
    large_enough = sum(found >= number for found in alive)
    if large_enough < job.num_nodes:
        raise AppUsageError(
            f"--nodes {job.num_nodes} and --gpus {job.processes} with --ray: the cluster has "
            f"{_count_nodes(large_enough)} with {_describe(job)} or more (its nodes have "
            f"{', '.join(f'{found:g}' for found in sorted(alive, reverse=True)[:16])}); lower them, or add nodes"
        )


def _torch_config() -> Any:
    """Ray's set-up of torch on every node, for addresses and ranks."""
    from contextlib import nullcontext

    from ray.train.torch import TorchConfig

    class HostTorchConfig(TorchConfig):
        """Leaves the GPUs alone, where the worker would otherwise hold half a gigabyte of the first one."""

        @property
        def train_func_context(self) -> Any:
            """What surrounds the function of a worker."""
            return nullcontext

    return HostTorchConfig(backend="gloo")


def _order(job: LaunchJob, extra: tuple[str, ...], mailbox: Any) -> NodeOrder:
    return NodeOrder(
        folder=str(Path.cwd()),
        arguments=(*job.launch_arguments(), *extra),
        num_nodes=job.num_nodes,
        stop_signal=job.stop_signal,
        mailbox=mailbox,
    )


def _resources(job: LaunchJob) -> dict[str, int]:
    """What Ray reserves on each node."""
    return {"GPU" if job.device == "cuda" else "CPU": job.processes}


def _describe(job: LaunchJob) -> str:
    ((kind, number),) = _resources(job).items()
    return f"{number} {kind}{'' if number == 1 else 's'}"


def _collect(ray: Any, mailbox: Any) -> NodeNews:
    news = ray.get(mailbox.collect.remote())
    assert isinstance(news, NodeNews)
    return news


def _count_nodes(number: int) -> str:
    return f"{number} node{'' if number == 1 else 's'}"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
