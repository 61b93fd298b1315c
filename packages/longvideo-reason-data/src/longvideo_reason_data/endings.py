"""How a command ends when its user interrupts it, or whoever reads its output leaves: quietly, with the usual status.

Both can happen at any moment, also while a command is still being loaded; so a command is started from here, by the
name of its module, and nothing heavy is imported before.
"""

import os
import signal
import sys
from collections.abc import Callable
from importlib import import_module

INTERRUPTED = 128 + signal.SIGINT
PIPE_CLOSED = 128 + signal.SIGPIPE


def run_command(module: str) -> int:
    """Load a command and run its `main`.

    Args:
        module: Name of the module.

    Returns:
        The status to exit with: that of the command, 130 when interrupted, 141 when nobody reads its output any more.
    """
    return end_quietly(lambda: import_module(module).main())


def end_quietly(run: Callable[[], int]) -> int:
    """Run something that may be interrupted; see `run_command`."""
    try:
        try:
            return run()
        finally:
            sys.stdout.flush()  # a closed pipe shows when it is written to, not before
    except BrokenPipeError:
        _write_nowhere()
        return PIPE_CLOSED
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever presses twice isn't told what was being tidied up
        print("interrupted; start the same command again to go on", file=sys.stderr)
        # After an interruption within exec(text), as in the making of dataclasses, `python -m` ends by the signal even
        # though it was caught; the next exec(text) clears that.
        exec("")
        return INTERRUPTED


def _write_nowhere() -> None:
    """Let what is still in the buffers vanish, or Python complains about it at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            os.dup2(nowhere, stream.fileno())
