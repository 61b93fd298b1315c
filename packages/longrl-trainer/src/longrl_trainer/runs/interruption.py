"""Signals at which a run saves its state and ends, instead of ending at once.

A signal is only noted; the loop looks after each step. What isn't caught here, like Ctrl+C, ends a process as ever.
"""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

__all__ = ["StopSignals"]


class StopSignals:
    """Notes these signals within its `with` block.

    Python delivers signals to the main thread alone; in another one nothing is caught. A signal for which a library has
    a handler of its own is left to it.

    Args:
        names: Names of signals.

    Attributes:
        received: The last one that arrived.
    """

    def __init__(self, *names: str) -> None:
        self._numbers = [signal.Signals[name] for name in names]
        self._before: dict[signal.Signals, Any] = {}
        self.received: str | None = None

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            for number in self._numbers:
                if signal.getsignal(number) is not None:
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number).name
