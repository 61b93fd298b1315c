"""What is to be started: a recipe with its overrides, how many processes on how many nodes, and which node this is."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from longrl.errors import AppUsageError
from longrl.stages import CommandName, RecipeConfig
from longrl_trainer.config.benchmarks import BenchmarkConfig
from longrl_trainer.durable import LOGS_NAME

__all__ = ["DeviceName", "LaunchJob", "NodeAddress", "count_ranks", "python_command", "read_address"]

DeviceName = Literal["cuda", "cpu"]

SINGLE_PROCESS = ("generate", "generate-grpo")
SAVING = ("sft", "grpo", "generate-grpo")
STOP_SIGNAL = "SIGTERM"


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeAddress:
    """Where the first node listens.

    Attributes:
        host: Its name or number, as all nodes reach it.
        port: A free port of it; the next one is used as well, by torchrun.
    """

    host: str
    port: int


def read_address(text: str) -> NodeAddress:
    """The address that an option's text stands for.

    Raises:
        AppUsageError: It is none.
    """
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16 - 1:
        raise AppUsageError(f"--address {text!r}: expected HOST:PORT of the first node, such as node1:29500")
    return NodeAddress(host=host.strip("[]"), port=int(port))


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchJob:
    """One start.

    Attributes:
        recipe: The recipe.
        command: The command that it is for.
        overrides: Options that override its settings.
        config: Its settings with them.
        device: Where ranks compute.
        num_nodes: Number of machines.
        processes: Ranks of each.
        node_rank: Which of them this is.
        address: Where the first one listens; None for a single one.
    """

    recipe: Path
    command: CommandName
    overrides: tuple[str, ...]
    config: RecipeConfig
    device: DeviceName
    num_nodes: int
    processes: int
    node_rank: int = 0
    address: NodeAddress | None = None

    def __post_init__(self) -> None:
        for option, value in (("--nodes", self.num_nodes), ("--gpus", self.processes)):
            if value < 1:
                raise AppUsageError(f"{option} {value}: expected 1 or more")
        if not 0 <= self.node_rank < self.num_nodes:
            raise AppUsageError(
                f"--node-rank {self.node_rank} with --nodes {self.num_nodes}: expected 0 to {self.num_nodes - 1}"
            )
        if self.num_nodes > 1 and self.address is None:
            raise AppUsageError(
                f"--address is missing with --nodes {self.num_nodes}: set HOST:PORT of the first node, the same on all"
            )
        if self.command in SINGLE_PROCESS and self.num_ranks > 1:
            raise AppUsageError(
                f"{self.recipe}: `longrl {self.command}` runs in one process; set --nodes 1 and --gpus 1"
            )

    @property
    def num_ranks(self) -> int:
        """Processes on all nodes."""
        return self.num_nodes * self.processes

    @property
    def output(self) -> Path:
        """The run's folder, or the file that it writes."""
        return self.config.output

    @property
    def folder(self) -> Path:
        """The folder in which it writes."""
        return self.output if self._writes_folder else self.output.parent

    @property
    def logs(self) -> Path:
        """Where the output of all ranks goes, a folder for every start."""
        if self._writes_folder:
            return self.output / LOGS_NAME
        return self.output.with_name(f"{self.output.stem}-{LOGS_NAME}")

    @property
    def stop_signal(self) -> str:
        """The signal at which a rank saves and ends, or without anything to save only ends."""
        name = getattr(self.config, "warning_signal", STOP_SIGNAL)
        assert isinstance(name, str)
        return name

    @property
    def saves(self) -> bool:
        """Whether a stopped run has saved its state, and goes on when it is started again."""
        return self.command in SAVING

    def rank_arguments(self) -> list[str]:
        """The program of every rank, after `python -m`."""
        device = ["--model.device", "cpu"] if self.device == "cpu" else []
        command = [self.command, str(self.recipe), *self.overrides, *device]
        return ["longrl.launch.rank", self.stop_signal, *command]

    def torchrun_arguments(self, logs: Path, node_rank: int | None = None) -> list[str]:
        """The arguments of torchrun on a node, by default on this one.

        Args:
            logs: Folder for the output of this start.
            node_rank: Which node.
        """
        nodes = ["--standalone"]
        if self.address is not None and self.num_nodes > 1:
            place = self.node_rank if node_rank is None else node_rank
            nodes = [f"--nnodes={self.num_nodes}", f"--node-rank={place}"]
            nodes += [f"--master-addr={self.address.host}", f"--master-port={self.address.port + 1}"]
        own = [f"--nproc-per-node={self.processes}", f"--log-dir={logs}", "--logs-specs=longrl"]
        # A stop signal is for the ranks, which save and end; by itself torchrun would kill them after a while.
        return [*nodes, *own, "--signals-to-handle=SIGINT,SIGHUP,SIGQUIT", "-m", *self.rank_arguments()]

    def launch_arguments(self) -> list[str]:
        """The words with which `longrl` starts this on a node, without what differs between nodes."""
        sizes = ["--nodes", str(self.num_nodes), "--gpus", str(self.processes), "--device", self.device]
        return ["launch", str(self.recipe), *sizes, *self.overrides]

    @property
    def _writes_folder(self) -> bool:
        return self.command in SAVING or isinstance(self.config, BenchmarkConfig)


def count_ranks(number: int) -> str:
    """The number of ranks, in words that fit it."""
    return f"{number} rank{'' if number == 1 else 's'}"


def python_command(arguments: Sequence[str]) -> list[str]:
    """This Python with these arguments."""
    return [sys.executable, *arguments]
