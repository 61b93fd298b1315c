"""Saves checkpoints while training goes on.

The tensors are copied to the host's memory, which training waits for, and written from there by a thread on every rank.
The threads have a process group of their own, since messages of two threads in one group would mix. One checkpoint is
written at a time.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor

from longrl_trainer.durable import make_partial, publish, remove_partial, write_json
from longrl_trainer.errors import TrainerError
from longrl_trainer.training.checkpoints import FOLDERS_NAME, STATE_NAME, remove_older
from longrl_trainer.training.ranks import Ranks
from longrl_trainer.training.shards import describe_failure, start_writing


def open_messages(ranks: Ranks) -> dist.ProcessGroup | None:
    """A group for the messages of saving alone; None for a single process. All ranks call this together."""
    if ranks.size == 1:
        return None
    group = dist.new_group(backend="gloo", timeout=ranks.timeout)
    return group if isinstance(group, dist.ProcessGroup) else None


class CheckpointSaver:
    """Writes the checkpoints of a run, one at a time; all ranks make the same calls together.

    Args:
        run: The run's folder.
        num_kept: Number of newest checkpoints that stay, besides the best one.
        ranks: The processes of the run.
    """

    def __init__(self, run: Path, *, num_kept: int, ranks: Ranks) -> None:
        self._run = run
        self._num_kept = num_kept
        self._ranks = ranks
        self._group: dist.ProcessGroup | None = None
        self._pending: Future[Any] | None = None

    def start(
        self,
        tensors: Mapping[str, Tensor],
        state: Mapping[str, Any],
        write_beside: Callable[[Path], None] | None = None,
    ) -> None:
        """Begin to save these tensors with this description, which names the step.

        Args:
            tensors: Named alike on all ranks; they may change afterwards.
            state: What `state.json` says.
            write_beside: Writes further files into the checkpoint's folder at once; called on all ranks together.

        Raises:
            TrainerError: The checkpoint before couldn't be written, or this one's folder can't be made.
        """
        self.wait()
        self._group = self._group or open_messages(self._ranks)
        folder = self._run / FOLDERS_NAME / f"step-{state['step']:06d}"
        partial = Path(self._ranks.ask_first(lambda: str(make_partial(folder))))

        if write_beside is not None:
            self._ranks.divide([partial] * self._ranks.size, lambda folders: [write_beside(folders[0])])

        def complete() -> None:
            paths = sorted(path for path in partial.rglob("*") if path.is_file())
            files = {path.relative_to(partial).as_posix(): path.stat().st_size for path in paths}
            write_json(partial / STATE_NAME, {**state, "files": files})
            publish(partial, folder)
            remove_older(self._run, num_kept=self._num_kept)

        self._pending = start_writing(partial, tensors, group=self._group, complete=complete)

    @property
    def has_failed(self) -> bool:
        """Whether it is known already that the checkpoint can't be written."""
        return self._pending is not None and self._pending.done() and self._pending.exception() is not None

    def wait(self) -> None:
        """Wait until what was begun is written.

        Raises:
            TrainerError: It couldn't be, on one rank or several; all raise the same.
        """
        pending, self._pending = self._pending, None
        failure = None if pending is None else pending.exception()
        if failure is None:
            return
        if self._ranks.is_first:
            remove_partial(self._run, FOLDERS_NAME)
        reason = str(failure) if isinstance(failure, TrainerError) else describe_failure(failure)
        raise TrainerError(
            f"cannot write a checkpoint to {self._run / FOLDERS_NAME}: {reason}; free some space or choose another "
            "`output`"
        ) from failure

    def close(self) -> None:
        """Wait for what was begun, however it ends; nothing is written afterwards."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.exception()
        if self._group is not None:
            dist.destroy_process_group(self._group)
            self._group = None
