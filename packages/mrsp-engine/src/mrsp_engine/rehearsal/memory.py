"""Bytes that one rank holds, by part, and the most of them in every stage of a step.

A tensor's storage counts from the operation that makes it until nothing refers to it any more. Storages that an
allocator changes in place (FSDP2 empties and refills those of gathered weights) are measured again whenever it matters.

The module is independent of what the parts are.
"""

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from torch import Tensor, UntypedStorage

__all__ = ["MemoryLedger", "Peak"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    """The moment of a stage at which most bytes were held.

    Attributes:
        num_bytes: All of them.
        parts: Bytes by part.
        place: What was being computed.
    """

    num_bytes: int
    parts: dict[str, int] = field(default_factory=dict[str, int])
    place: str = ""


@dataclass(slots=True, kw_only=True, eq=False)
class _Entry:
    storage: "weakref.ref[UntypedStorage]"
    num_bytes: int
    part: str
    is_resized: bool = False


class MemoryLedger:
    """Counts storages.

    Args:
        place: Tells what is being computed, asked at every new peak.

    Attributes:
        peaks: The peak of every stage so far.
    """

    def __init__(self, place: Callable[[], str]) -> None:
        self.peaks: dict[str, Peak] = {}
        self._place = place
        self._entries: dict[int, _Entry] = {}
        self._resized: set[int] = set()
        self._parts: dict[str, int] = {}
        self._total = 0
        self._stage = ""
        self._peak = 0

    @property
    def num_bytes(self) -> int:
        """Bytes held now."""
        self._measure_resized()
        return self._total

    def begin(self, stage: str) -> None:
        """From here on everything belongs to another stage, whose peak is at least what is held now."""
        self._measure_resized()
        self._stage, self._peak = stage, -1
        if stage in self.peaks:
            self._peak = self.peaks[stage].num_bytes
        self._note_peak()

    def add(self, tensor: Tensor, part: str) -> None:
        """Count a tensor's storage, unless it is counted already."""
        self._enter(tensor, part, tensor.untyped_storage().nbytes())

    def exclude(self, tensor: Tensor) -> None:
        """Don't count a tensor's storage, now or later, such as one in the host's memory."""
        self._enter(tensor, "", 0)

    def _enter(self, tensor: Tensor, part: str, num_bytes: int) -> None:
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in self._entries:
            return
        self._entries[key] = _Entry(
            storage=weakref.ref(storage, lambda _, key=key: self._remove(key)), num_bytes=num_bytes, part=part
        )
        self._change(part, num_bytes)
        if self._total > self._peak:
            self._measure_resized()
            self._note_peak()

    def assign(self, tensors: Iterable[Tensor], part: str) -> None:
        """Count tensors as another part."""
        for tensor in tensors:
            self.add(tensor, part)
            entry = self._entries[id(tensor.untyped_storage())]
            if entry.part != part:
                self._change(entry.part, -entry.num_bytes)
                self._change(part, entry.num_bytes)
                entry.part = part

    def watch(self, tensors: Iterable[Tensor], part: str) -> None:
        """Count tensors as another part whose storages are emptied and refilled in place."""
        for tensor in tensors:
            self.assign([tensor], part)
            self._resized.add(id(tensor.untyped_storage()))
        self._measure_resized()
        self._note_peak()

    def _measure_resized(self) -> None:
        for key in self._resized:
            entry = self._entries[key]
            storage = entry.storage()
            num_bytes = 0 if storage is None else storage.nbytes()
            if num_bytes != entry.num_bytes:
                self._change(entry.part, num_bytes - entry.num_bytes)
                entry.num_bytes = num_bytes

    def _remove(self, key: int) -> None:
        entry = self._entries.pop(key)
        self._resized.discard(key)
        self._change(entry.part, -entry.num_bytes)

    def _change(self, part: str, num_bytes: int) -> None:
        self._parts[part] = self._parts.get(part, 0) + num_bytes
        self._total += num_bytes

    def _note_peak(self) -> None:
        if self._total > self._peak:
            self._peak = self._total
            held = {part: num_bytes for part, num_bytes in self._parts.items() if num_bytes}
            self.peaks[self._stage] = Peak(num_bytes=self._total, parts=held, place=self._place())
