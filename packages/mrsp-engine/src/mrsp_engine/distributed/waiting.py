"""Which exchange this process waits in, for a watch over the ranks; steps take no time for it.

torch's flight recorders count the collectives of every process group, those of FSDP2 and of a checkpoint's thread too.
With gloo they don't know the messages between two ranks, whose transport (`collectives.Transfer`) tells them here.
"""

import importlib
from collections.abc import Generator, Hashable, Sequence
from contextlib import contextmanager
from itertools import count
from types import FrameType
from typing import Any, cast

from longrl_files.json_text import parse_json

__all__ = ["find_unfinished", "messages", "name_exchange"]

_c10d: Any = importlib.import_module("torch._C._distributed_c10d")

# One records gloo's collectives, the other NCCL's.
_RECORDERS = ("_dump_fr_trace_json", "_dump_nccl_trace_json")

_numbers = count()
_messages_waited_for: set[int] = set()


@contextmanager
def messages() -> Generator[None]:
    """Within the block this process waits for messages from other ranks."""
    number = next(_numbers)
    _messages_waited_for.add(number)
    try:
        yield
    finally:
        _messages_waited_for.discard(number)


def find_unfinished() -> set[Hashable]:
    """What tells the exchanges apart that have begun in this process and not ended; empty if there are none.

    As long as a rank waits for an exchange, the same is found for it again and again.
    """
    unfinished: set[Hashable] = {("messages", number) for number in tuple(_messages_waited_for)}
    for recorder in _RECORDERS:
        groups = cast(dict[str, dict[str, str]], _read(recorder, "pg_status", is_brief=True)).values()
        # Exchanges that end at the same time are counted in any order, so a difference alone means nothing.
        if any(of_group["last_enqueued_collective"] != of_group["last_completed_collective"] for of_group in groups):
            entries = cast(list[dict[str, Any]], _read(recorder, "entries"))
            unfinished |= {(recorder, entry["record_id"]) for entry in entries if not entry["retired"]}
    return unfinished


def name_exchange(frames: Sequence[FrameType], thread: int, *, has_failed: bool = False) -> str:
    """The kind of exchange that a thread of this process waits in, or in which it failed, such as "all_gather".

    Args:
        frames: What the thread is doing, or was when it failed, from outside to inside.
        thread: The thread.
        has_failed: Whether the exchange has failed.
    """
    if any(frame.f_code.co_qualname == "Transfer.wait" for frame in frames):
        return "messages between ranks"
    entries = [entry for recorder in _RECORDERS for entry in cast(list[Any], _read(recorder, "entries"))]
    entries.sort(key=lambda entry: entry["time_created_ns"])
    own = [entry for entry in entries if entry.get("thread_id") == str(thread)]
    unfinished = [entry for of_one in (own, entries) for entry in of_one if not entry["retired"]]
    found = ((own or entries)[-1:] if has_failed else unfinished[:1]) or [{"profiling_name": ":an exchange"}]
    return str(found[0]["profiling_name"]).partition(":")[2].strip("_")


def _read(recorder: str, what: str, *, is_brief: bool = False) -> Any:
    """A part of what a recorder knows; empty if this torch has none."""
    dump = getattr(_c10d, recorder, None)
    found = {} if dump is None else cast(dict[str, Any], parse_json(dump(includeCollectives=not is_brief)))
    return found.get(what, {})
