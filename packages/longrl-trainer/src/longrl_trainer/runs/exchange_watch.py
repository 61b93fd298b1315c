"""Ends a run whose ranks would wait for each other forever, in one line that names who waits where and who hasn't come.

A thread on every rank looks about once a second whether an exchange has lasted longer than the ranks' patience
(`mrsp_engine.distributed.waiting`), and whether another rank has found one. Then every rank writes into the store of
the process group what it is doing, reads what the others wrote, and says the same. A rank that is killed breaks its
connections, which the others notice at once; they come here by the error.

A waiting process can't be woken, so the thread ends it. Checkpoints that are complete stay.
"""

import json
import os
import sys
import threading
import traceback
from collections.abc import Generator, Hashable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from time import monotonic, sleep
from types import FrameType, TracebackType
from typing import Any, cast

import torch.distributed as dist

from longrl_files.json_text import parse_json
from longrl_files.messages import error_line, visible
from longrl_trainer.errors import TrainerError
from longrl_trainer.runs.interruption import StopSignals
from longrl_trainer.training.ranks import Ranks
from mrsp_engine.distributed.waiting import find_unfinished, name_exchange

__all__ = ["ExchangeWatch"]

ANSWER_SECONDS = 5.0
"""How long ranks wait for the answers of all when one has found that they would wait forever."""

BROKEN = "the connection between them broke"
LOOPS = ("_train", "_evaluate")
OURS = ("longrl", "longrl_omni", "longrl_trainer", "mrsp_engine")
CARRIERS = ("mrsp_engine.distributed.collectives", "longrl_trainer.training.ranks", __name__)
TROUBLE = "trouble"


class ExchangeWatch(AbstractContextManager["ExchangeWatch"]):
    """Watches the exchanges of a run within its `with` block; all ranks enter it together. One process has none.

    Args:
        ranks: The processes of the run.
        patience_seconds: How long an exchange may last.
        place: The run's folder or file, named in messages.

    Attributes:
        step: The step that this rank is in, counted from 1; None before the first.
    """

    def __init__(self, ranks: Ranks, patience_seconds: float, place: Path) -> None:
        self.step: int | None = None
        self._rank, self._size = ranks.rank, ranks.size
        self._patience_seconds, self._place = patience_seconds, place
        self._ended = threading.Event()
        self._lock, self._told = threading.Lock(), threading.Lock()
        self._has_reported = False
        self._thread: threading.Thread | None = None
        if ranks.group is not None and ranks.size > 1:
            self._store = _open_store(ranks.group.process_group, ranks.rank)
            self._thread = threading.Thread(target=self._follow, name="exchange watch", daemon=True)

    def __enter__(self) -> "ExchangeWatch":
        """Begin to watch."""
        self._watched_thread = threading.get_ident()
        if self._thread is not None:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop watching.

        Raises:
            TrainerError: An exchange broke off; what the ranks know of it.
        """
        if self._thread is None:
            return
        broken = _find_broken(error)
        if broken is None:
            self._report(left="" if error is None else visible(str(error) or type(error).__name__))
            self._ended.set()
            self._thread.join()
            return
        with StopSignals("SIGTERM"):  # as torchrun sends when a process has failed
            frames = [frame for frame, _ in traceback.walk_tb(broken.__traceback__)]
            self._report(frames, name_exchange(frames, self._watched_thread, has_failed=True))
            _, line = self._gather(BROKEN)
        if self._told.acquire(blocking=False):
            self._ended.set()
        self._thread.join()  # which ends the process if it has told already
        raise TrainerError(line) from error

    def _follow(self) -> None:
        """The thread."""
        begun: dict[Hashable, float] = {}
        next_look = 0.0
        while not self._ended.wait(min(1.0, self._patience_seconds / 8)):
            now = monotonic()
            if now >= next_look:
                begun = {exchange: begun.get(exchange, now) for exchange in find_unfinished()}
                next_look = now + self._patience_seconds / 8
            is_over = any(now - since >= self._patience_seconds for since in begun.values())
            with _surviving():
                is_over = is_over or self._store.check([TROUBLE])
            if is_over:
                frames = _frames_of(self._watched_thread)
                self._report(frames, name_exchange(frames, self._watched_thread) if find_unfinished() else None)
                setting = f"parallel.exchange_patience_seconds = {self._patience_seconds:g}"
                reason, line = self._gather(f"{setting} is over")
                if reason == BROKEN and self._ended.wait(ANSWER_SECONDS):
                    return  # the watched thread's own error tells
                if self._told.acquire(blocking=False):
                    print(error_line(line), file=sys.stderr, flush=True)
                    os._exit(TrainerError.exit_code)

    def _report(
        self, frames: Sequence[FrameType] = (), exchange: str | None = None, *, left: str | None = None
    ) -> None:
        """Tell the others once what this rank is doing: the exchange it waits in, or that it has left, and why."""
        with self._lock, _surviving():
            if not self._has_reported:
                self._has_reported = True
                step = "before the first step" if self.step is None else f"step {self.step}"
                report = {"exchange": exchange, "place": f"{step}: {_describe_place(frames)}", "left": left}
                self._store.set(f"rank {self._rank}", json.dumps(report))

    def _gather(self, reason: str) -> tuple[str, str]:
        """Have all ranks tell, for the first rank's reason; that reason, and what all are doing, in one line."""
        keys = [f"rank {rank}" for rank in range(self._size)]
        reports: list[Mapping[str, Any] | None] = [None] * self._size
        with _surviving():
            reason = self._store.compare_set(TROUBLE, "", reason).decode()
            deadline = monotonic() + ANSWER_SECONDS
            while monotonic() < deadline and not self._store.check(keys):
                sleep(0.05)
            for rank, key in enumerate(keys):
                if self._store.check([key]):
                    reports[rank] = cast(dict[str, Any], parse_json(self._store.get(key)))
        end = "started again, the run goes on from its last checkpoint"
        return reason, f"{self._place}: {_describe(reports)}; {reason}; {end}"


def _open_store(process_group: dist.ProcessGroup, rank: int) -> Any:
    """A connection of its own to the group's store, and a part of it for this watch alone."""
    store: Any = cast(Any, process_group.get_group_store()).clone()
    store.set_timeout(timedelta(seconds=ANSWER_SECONDS))
    return dist.PrefixStore(f"exchange watch {store.add(f'exchange watches of rank {rank}', 1)}", store)


@contextmanager
def _surviving() -> Generator[None]:
    """Go on without the store, which ends with the process that holds it."""
    with suppress(RuntimeError):
        yield


def _find_broken(error: BaseException | None) -> BaseException | None:
    """The error of an exchange that led to an error, if one did."""
    while error is not None:
        # gloo's errors have no class of their own, and a checkpoint's tells gloo's words.
        if isinstance(error, dist.DistError) or "/gloo/" in str(error):
            return error
        error = error.__cause__
    return None


def _frames_of(thread: int) -> list[FrameType]:
    """What a thread is doing, from outside to inside."""
    frame = cast(Any, sys)._current_frames().get(thread)
    return [] if frame is None else [found for found, _ in traceback.walk_stack(frame)][::-1]


def _describe_place(frames: Sequence[FrameType]) -> str:
    """The function that the loop has called, and the innermost one of ours."""
    starts = [place for place, frame in enumerate(frames) if frame.f_code.co_name in LOOPS]
    inner = [
        frame
        for frame in frames[starts[-1] + 1 if starts else 0 :]
        if _module_of(frame).partition(".")[0] in OURS and _module_of(frame) not in CARRIERS
    ]
    if not inner:
        return "" if not frames else f"{frames[-1].f_code.co_qualname}, {_line_of(frames[-1])}"
    names = dict.fromkeys(frame.f_code.co_qualname for frame in (inner[0], inner[-1]))
    return f"{' > '.join(names)}, {_line_of(inner[-1])}"


def _line_of(frame: FrameType) -> str:
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"


def _module_of(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))


def _describe(reports: Iterable[Mapping[str, Any] | None]) -> str:
    """Who hasn't come, then who waits where."""
    missing: dict[tuple[str, str, str], list[int]] = {}
    waiting: dict[tuple[str, str, str], list[int]] = {}
    for rank, report in enumerate(reports):
        if report is None:
            missing.setdefault(("doesn't", "don't", "answer, perhaps killed"), []).append(rank)
        elif report["left"] is not None:
            missing.setdefault(("has", "have", "left" + (report["left"] and f" ({report['left']})")), []).append(rank)
        elif report["exchange"] is None:
            missing.setdefault(("hasn't", "haven't", f"come from {report['place']}"), []).append(rank)
        else:
            waiting.setdefault(("waits", "wait", f"in {report['exchange']} ({report['place']})"), []).append(rank)
    sentences: list[str] = []
    for (verb, verb_of_many, rest), ranks in (missing | waiting).items():
        some = ", ".join(map(str, ranks[:8])) + (f" and {len(ranks) - 8} more" if len(ranks) > 8 else "")
        sentences.append(f"rank {some} {verb} {rest}" if len(ranks) == 1 else f"ranks {some} {verb_of_many} {rest}")
    return "; ".join(sentences)
