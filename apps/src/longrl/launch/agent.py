"""torchrun on this node: it starts the ranks and ends all when one fails; here its end is explained.

A stop signal is passed on to the ranks until they have saved and ended, which torchrun by itself would cut short. The
exit status is that of the rank that failed first: 75 for one that has saved and can go on.
"""

import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from longrl.launch.job import LaunchJob
from longrl.launch.link import LifeWatch, NodeLink, quiet_network
from longrl.launch.logs import LINE_PREFIX, last_lines, log_name
from longrl_files.messages import visible
from longrl_trainer.errors import StoppedError

__all__ = ["NodeAgent", "rank_environment"]

STOPPED = StoppedError.exit_code
REPEAT_SECONDS = 5.0
LISTEN_SECONDS = 0.5
GRACE_SECONDS = 10.0
"""How long this node's ranks may end by themselves when another node has failed, and then at SIGTERM."""
SAVING_SECONDS = 60.0
"""The same when ranks elsewhere have saved and ended, as these are about to."""


def rank_environment(job: LaunchJob) -> dict[str, str]:
    """What is set for torchrun and the ranks, unless the user has set it."""
    cores = len(os.sched_getaffinity(0))
    values = {
        "OMP_NUM_THREADS": str(max(1, cores // job.processes)),
        "TORCHELASTIC_LOG_LINE_PREFIX_TEMPLATE": LINE_PREFIX,
        **quiet_network("localhost" if job.address is None else job.address.host),
    }
    return {name: value for name, value in values.items() if name not in os.environ}


class NodeAgent:
    """Runs this node's ranks once.

    Args:
        job: What to run.
        link: The connection between the nodes.
        logs: Folder for the ranks' output.
    """

    def __init__(self, job: LaunchJob, link: NodeLink, logs: Path) -> None:
        self._job, self._link, self._logs = job, link, logs
        self._stop_signal = signal.Signals[job.stop_signal]
        self._is_stopped = threading.Event()
        self._has_ended = threading.Event()
        self._trouble: dict[str, Any] | None = None

    def run(self) -> tuple[int, dict[str, Any] | None]:
        """Run all ranks to their end.

        Returns:
            The status to exit with, and what failed: its `node`, `rank`, `code` and `lines`. None if nothing did.
        """
        with LifeWatch(self._link, self._end_with_others) as watch, self._passing_signals():
            try:
                failure = self._run_torchrun()
            except BaseException as error:
                code = error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else 1
                watch.tell_end(self._failure(code, [f"{self._name()}: its launcher was interrupted"]))
                raise
            finally:
                self._has_ended.set()
            failure = self._trouble if failure is not None and self._trouble is not None else failure
            failure = watch.tell_end(failure)
        return (0, None) if failure is None else (int(failure["code"]), failure)

    def _run_torchrun(self) -> dict[str, Any] | None:
        """What failed first on this node, if anything did."""
        from torch.distributed.elastic.multiprocessing import SignalException
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
        from torch.distributed.run import parse_args, run

        os.environ |= rank_environment(self._job)
        try:
            with _without_torchruns_log():
                run(parse_args(self._job.torchrun_arguments(self._logs)))
        except ChildFailedError as error:
            return self._explain({rank: failure.exitcode for rank, failure in error.failures.items()})
        except SignalException as error:
            if error.sigval == signal.SIGINT:
                raise KeyboardInterrupt from None
            return self._failure(128 + error.sigval, [f"ended by {signal.Signals(error.sigval).name}"])
        except (RuntimeError, OSError, ValueError) as error:
            return self._failure(1, [f"torchrun can't start the ranks: {visible(str(error))}"])
        return None

    def _explain(self, codes: Mapping[int, int]) -> dict[str, Any]:
        """The failure of a node whose ranks ended with these codes, the first one first."""
        asked = {STOPPED, -self._stop_signal, -signal.SIGTERM}
        if self._is_stopped.is_set() and set(codes.values()) <= asked | {0}:
            code = STOPPED if self._job.saves else 128 + self._stop_signal
            return self._failure(code, [])
        # A killed rank and those that notice it may be found at the same time.
        killed = [rank for rank, code in codes.items() if code < 0 and -code != signal.SIGTERM]
        rank = killed[0] if killed else next(iter(codes))
        code = codes[rank]
        if code == STOPPED:
            return self._failure(code, [])
        how = f"failed with exit status {code}"
        if code < 0:
            how = f"was killed by {signal.Signals(-code).name}"
            if -code == signal.SIGKILL:
                how += "; if nobody did it, the machine was out of memory (`dmesg` tells)"
        lines = [f"rank {rank} on {self._name()} {how}"]
        shown = last_lines(self._logs, rank)
        # What rank 0 said is on the terminal already; ranks that fail for the same reason say the same.
        if rank != 0 and not (self._job.node_rank == 0 and shown and shown == last_lines(self._logs, 0)):
            lines += [f"[rank {rank}] {line}" for line in shown]
        lines.append(f"all it said: {self._logs / log_name(rank, 'err')}")
        return self._failure(128 - code if code < 0 else code, lines, rank)

    def _failure(self, code: int, lines: list[str], rank: int | None = None) -> dict[str, Any]:
        return {"node": self._job.node_rank, "rank": rank, "code": code, "lines": lines}

    def _name(self) -> str:
        return f"node {self._job.node_rank} ({socket.gethostname()})"

    @contextmanager
    def _passing_signals(self) -> Generator[None]:
        """Pass stop signals on to the ranks, again and again: one that is still loading doesn't listen yet.

        They are heard by a thread too, because the main one runs no Python while torchrun waits for the first node.
        """
        names = {signal.SIGTERM, self._stop_signal}
        before = {name: signal.signal(name, self._note) for name in names}
        hearing, told = socket.socketpair()
        hearing.settimeout(LISTEN_SECONDS)
        told.setblocking(False)
        told_before = signal.set_wakeup_fd(told.fileno(), warn_on_full_buffer=False)
        thread = threading.Thread(target=self._pass_on, args=(hearing,), name="stop signals", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._has_ended.set()
            signal.set_wakeup_fd(told_before)
            thread.join()
            hearing.close()
            told.close()
            for name, handler in before.items():
                signal.signal(name, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._is_stopped.set()
        if not _children():  # nothing to save yet
            raise SystemExit(self._stopped_status(number))

    def _stopped_status(self, number: int) -> int:
        return STOPPED if self._job.saves and number != signal.SIGINT else 128 + number

    def _pass_on(self, hearing: socket.socket) -> None:
        number = int(self._stop_signal)
        while not self._is_stopped.is_set():
            if self._has_ended.is_set():
                return
            with suppress(TimeoutError):
                number = hearing.recv(1)[0]
                if number in (signal.SIGINT, signal.SIGTERM, self._stop_signal):
                    break
        if number not in (signal.SIGINT, self._stop_signal):
            asked = "to save and stop" if self._job.saves else "to stop"
            print(
                f"{signal.Signals(number).name} came: the ranks are asked {asked}, by {self._stop_signal.name}",
                file=sys.stderr,
                flush=True,
            )
        while not self._has_ended.is_set():
            if number != signal.SIGINT:
                _send(self._stop_signal)
            if not self._has_ended.wait(REPEAT_SECONDS) and not _children():
                self._leave(self._stopped_status(number), [])

    def _end_with_others(self, trouble: dict[str, Any]) -> None:
        """End this node's ranks after another node's; called from the thread that watches the others."""
        self._trouble = trouble
        is_saved = trouble.get("code") == STOPPED
        if is_saved:
            self._is_stopped.set()
        steps = [(SAVING_SECONDS if is_saved else GRACE_SECONDS, signal.SIGTERM), (GRACE_SECONDS, signal.SIGKILL)]
        for seconds, number in steps:
            if self._has_ended.wait(seconds):
                return
            if not _children():
                self._leave(int(trouble["code"]), trouble["lines"])
            _send(number)

    def _leave(self, code: int, lines: list[str]) -> None:
        """End this process from another thread: torchrun waits for the first node, and no exception would reach it."""
        for line in lines:
            print(visible(str(line), 399), file=sys.stderr, flush=True)
        os._exit(code)


def _children() -> list[int]:
    """The processes that this one has started."""
    found: list[int] = []
    for path in Path("/proc/self/task").glob("*/children"):
        with suppress(OSError):
            found += map(int, path.read_text().split())
    return found


def _send(number: signal.Signals) -> None:
    for process in _children():
        with suppress(ProcessLookupError):
            os.kill(process, number)


@contextmanager
def _without_torchruns_log() -> Generator[None]:
    """Keep torchrun's own lines from the terminal; what they say is said here in one, unless the user asks for them."""
    if "LOGLEVEL" in os.environ:
        yield
        return
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
