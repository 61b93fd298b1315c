"""The processes of a run: a single one, or all that torchrun started, which work on every step together.

Ranks = data × sequence. The frames of the videos and the prompts to sample are shared among all of them. Rows are
divided twice: `sequence_ranks` neighbours share the tokens of a row, and these groups of neighbours, the data ranks,
compute different rows. All end a step with the same gradient, and so keep equal weights. What is decided or written
once is decided or written by the first rank. Ranks exchange only plain objects here; the engine exchanges tensors.
"""

import os
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TypeVar, cast

import torch
import torch.distributed as dist

from longrl_trainer.config.sections import ModelSection, ParallelSection
from longrl_trainer.errors import StoppedError, TrainerError, TrainerUsageError
from mrsp_engine.distributed.collectives import exchange_objects, sum_gradients
from mrsp_engine.distributed.process_groups import SequenceGroup, create_sequence_group
from mrsp_engine.families.base import Policy

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")

GROUP_TIMEOUT = timedelta(hours=1)
"""How long torch lets ranks wait for each other, at least; `runs.exchange_watch` ends a run sooner."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """This process's place among the processes of the run.

    Attributes:
        group: All processes; None for a single one.
        sequence_group: The processes that share this one's rows; None if it computes its rows alone.
        timeout: How long torch lets them wait for each other.
    """

    group: SequenceGroup | None = None
    sequence_group: SequenceGroup | None = None
    timeout: timedelta = GROUP_TIMEOUT

    @property
    def rank(self) -> int:
        """This process's rank."""
        return 0 if self.group is None else self.group.rank

    @property
    def size(self) -> int:
        """Number of processes."""
        return 1 if self.group is None else self.group.size

    @property
    def is_first(self) -> bool:
        """Whether this process writes the run's folder and the output."""
        return self.rank == 0

    @property
    def sequence_ranks(self) -> int:
        """Number of processes that share a row."""
        return 1 if self.sequence_group is None else self.sequence_group.size

    @property
    def data_rank(self) -> int:
        """Which of the groups that share their rows this process belongs to."""
        return self.rank // self.sequence_ranks

    @property
    def num_data_ranks(self) -> int:
        """Number of groups that compute different rows."""
        return self.size // self.sequence_ranks

    def share_rows(self, sequence_ranks: int) -> "Ranks":
        """The same processes, of which as many neighbours share every row; all ranks call this together.

        Raises:
            TrainerUsageError: They can't be divided so.
        """
        check_sequence_ranks(sequence_ranks, self.size)
        if self.group is None or sequence_ranks == 1:
            return replace(self, sequence_group=None)
        if sequence_ranks == self.size:
            return replace(self, sequence_group=self.group)
        return replace(self, sequence_group=create_sequence_group(sequence_ranks, timeout=self.timeout))

    def exchange_between_data_ranks(self, value: ResultT) -> list[ResultT]:
        """The value of every data rank, whose processes all have the same; all ranks call this together."""
        return self.exchange(value)[:: self.sequence_ranks]

    def exchange(self, value: ResultT) -> list[ResultT]:
        """The value of every rank, in rank order; all ranks call this together."""
        return exchange_objects(value, self.group)

    def divide(
        self,
        items: Sequence[ItemT],
        work: Callable[[Sequence[ItemT]], Sequence[ResultT]],
        *,
        same_ranks: int = 1,
    ) -> list[ResultT]:
        """Let every rank do its share of the work; all get all results, in the order of the items.

        Args:
            items: The same on every rank.
            work: Returns one result per given item; a rank may get none.
            same_ranks: Number of neighbours that get the same share, and do it together.
        """
        place, num_shares = self.rank // same_ranks, self.size // same_ranks
        shares = self._attempt(lambda: work(items[place::num_shares]))[::same_ranks]
        return [shares[index % num_shares][index // num_shares] for index in range(len(items))]

    def ask_first(self, work: Callable[[], ResultT]) -> ResultT:
        """The result of `work` on the first rank; only that one runs it, and the others wait."""
        return cast(ResultT, self._attempt(lambda: work() if self.is_first else None)[0])

    def wait(self) -> None:
        """Wait until all ranks have arrived."""
        self.exchange(None)

    def sum_gradients(self, policy: Policy) -> None:
        """Sum the ranks' gradients of weights that every rank holds whole; afterwards each rank has the total."""
        if self.group is not None and policy.joint_passes is None:
            sum_gradients(policy.model, self.group)

    def _attempt(self, work: Callable[[], ResultT]) -> list[ResultT]:
        """The results of `work` on every rank; if it fails on one, all raise the same error."""
        value, error = None, None
        try:
            value = work()
        except Exception as caught:
            if self.group is None:
                raise
            error = caught
        failure = None if error is None else (str(error) or type(error).__name__, getattr(error, "exit_code", 1))
        reports = self.exchange((value, failure))
        if error is not None:
            raise error
        for _, failure in reports:
            if failure is not None:
                message, exit_code = failure
                kinds = {kind.exit_code: kind for kind in (TrainerUsageError, StoppedError)}
                raise kinds.get(exit_code, TrainerError)(message)
        return [cast(ResultT, value) for value, _ in reports]


ALONE = Ranks()


def choose_device(model: ModelSection) -> str:
    """Device of the trainer: "cpu" or "cuda".

    Raises:
        TrainerUsageError: The recipe wants a GPU, and there is none.
    """
    if model.device == "cuda" and not torch.cuda.is_available():
        raise TrainerUsageError('model.device="cuda": torch finds no GPU here; expected "auto" or "cpu"')
    if model.device != "auto":
        return model.device
    return "cuda" if torch.cuda.is_available() else "cpu"


def check_sequence_ranks(sequence_ranks: int, num_ranks: int) -> None:
    """Refuse a number of processes per row that doesn't divide the number of processes.

    Raises:
        TrainerUsageError: It doesn't.
    """
    if sequence_ranks < 1 or num_ranks % sequence_ranks:
        possible = ", ".join(str(ranks) for ranks in range(1, num_ranks + 1) if num_ranks % ranks == 0)
        raise TrainerUsageError(
            f"parallel.sequence_ranks={sequence_ranks} with {num_ranks} processes: expected one of {possible}"
        )


def join_ranks(model: ModelSection, parallel: ParallelSection | None = None) -> Ranks:
    """Join the processes that torchrun started, or use an existing process group; `Ranks.share_rows` comes later.

    Raises:
        TrainerUsageError: There are more processes than GPUs, or they can't share rows as the recipe says.
    """
    timeout = GROUP_TIMEOUT
    if parallel is not None:  # later than the watch, which tells more
        timeout = max(timeout, timedelta(seconds=2 * parallel.exchange_patience_seconds))
    ranks = _join(model, timeout)
    if parallel is not None and parallel.sequence_ranks is not None:
        check_sequence_ranks(parallel.sequence_ranks, ranks.size)
    return ranks


def _join(model: ModelSection, timeout: timedelta) -> Ranks:
    if not dist.is_initialized():
        if not dist.is_torchelastic_launched() or int(os.environ["WORLD_SIZE"]) == 1:
            return ALONE
        backend = "gloo"
        if choose_device(model) == "cuda":
            place, num_devices = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
            if place >= num_devices:
                raise TrainerUsageError(
                    f"torchrun started process {place + 1} on a machine with {num_devices} GPUs; "
                    f'lower --nproc-per-node, or set `model.device` to "cpu"'
                )
            torch.cuda.set_device(place)
            backend = "cpu:gloo,cuda:nccl"
        dist.init_process_group(backend, timeout=timeout)
        # Finalizers run in reverse order of creation: at exit, users of the group (vLLM) leave it first.
        weakref.finalize(dist, _leave_ranks)
    return Ranks(group=create_sequence_group(dist.get_world_size(), timeout=timeout), timeout=timeout)


def _leave_ranks() -> None:
    """Leave the process group; calling it again is harmless."""
    if dist.is_initialized():
        dist.destroy_process_group()
