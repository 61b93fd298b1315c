"""A first rendering of a chat template, where one that never ends can be ended.

A chat template is a Jinja program that comes with a checkpoint. transformers runs it in a sandbox, which keeps it away
from files and from Python's internals, but doesn't stop it from running for ever or filling the memory. So before a
template is used, it renders a sample in a forked child process with little time and memory. It may still misbehave with
another conversation: the trial finds broken templates and simple traps, and the length of every later text is bounded
too (`mrsp_engine.families.chat_prompts`).
"""

import os
import resource
import select
import signal
import warnings
from collections.abc import Callable

__all__ = ["describe_trial"]

MOST_CPU_SECONDS = 2
MOST_SECONDS = 10.0
MOST_BYTES = 192 * 2**20
_PAGE_BYTES = resource.getpagesize()


def describe_trial(render: Callable[[], object]) -> str | None:
    """Run something in a child process and say what is wrong with it.

    Args:
        render: What to run. An exception is not reported here, because a later call raises it as well.

    Returns:
        What went wrong, for a message; None if it ended.
    """
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        # The child only runs the template and needs nothing that the parent's other threads were doing.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        _render_and_exit(render, writer)
    os.close(writer)
    try:
        is_ended = bool(select.select([reader], [], [], MOST_SECONDS)[0])
        said = os.read(reader, 1) if is_ended else b""
    finally:
        os.close(reader)
        os.kill(child, signal.SIGKILL)  # it may have ended; its number stays its own until it is waited for
        _, status = os.waitpid(child, 0)
    if said == _ENDED:
        return None
    if said == _OUT_OF_MEMORY:
        return f"takes more than {MOST_BYTES // 2**20} MiB of memory for a short conversation"
    if not is_ended or os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL):
        return f"doesn't end within {MOST_CPU_SECONDS} seconds for a short conversation"
    return "ends the process for a short conversation"


_ENDED, _OUT_OF_MEMORY = b"e", b"m"


def _render_and_exit(render: Callable[[], object], writer: int) -> None:
    """Run in the child; never returns to the parent's code."""
    said = _ENDED
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CPU, (MOST_CPU_SECONDS, MOST_CPU_SECONDS + 1))
        with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123 - nothing is imported here any more
            now_bytes = int(file.read().split()[0]) * _PAGE_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (now_bytes + MOST_BYTES, now_bytes + MOST_BYTES))
        render()
    except MemoryError:
        said = _OUT_OF_MEMORY
    except BaseException:  # see `describe_trial`
        said = _ENDED
    finally:
        os.write(writer, said)
        os._exit(0)
