"""One rank's part in encoding the media that the store lacks.

`mrsp_engine.encoding.parallel.encode_media` calls the steps in order. Rows meet in the store; ranks tell each other
which media failed and which rows could not be written to disk. Shape legend: N embedding rows of a medium, D their
width.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mrsp_engine.distributed.collectives import exchange_objects, gather_tokens
from mrsp_engine.distributed.process_groups import SequenceGroup
from mrsp_engine.embeddings.entries import DiskRefusedError
from mrsp_engine.embeddings.store import EmbeddingStore
from mrsp_engine.encoding.frame_encoder import EncodingPlan, FrameEncoder
from mrsp_engine.encoding.video import Video
from mrsp_engine.errors import EngineError, UnreadableMediumError

__all__ = ["EncodingWork", "PlannedMedium", "UnusableMedium"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PlannedMedium:
    """A video or an image, and the frames to encode.

    Attributes:
        video: Reads the frames; the same on every rank.
        plan: What to encode, from `FrameEncoder.plan` or `FrameEncoder.plan_image`.
    """

    video: Video
    plan: EncodingPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class UnusableMedium:
    """Returned instead of a reference when a medium can't be decoded or encoded; the same on every rank.

    Attributes:
        message: The reason, in one line.
        is_unreadable: Whether the file is at fault (`UnreadableMediumError`), and not the encoder or the disk.
    """

    message: str
    is_unreadable: bool


@dataclass(slots=True, kw_only=True)
class EncodingWork:
    """One rank's part in `encode_media`.

    Attributes:
        failures: Why a medium can't be used, by digest.
        rows_in_memory: Rows that could not be written to disk, by digest.
        refused: Digests of media whose rows are not all on disk; the same on every rank once agreed on.
    """

    encoder: FrameEncoder
    store: EmbeddingStore
    group: SequenceGroup | None
    failures: dict[str, UnusableMedium] = field(default_factory=dict[str, UnusableMedium])
    rows_in_memory: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    refused: set[str] = field(default_factory=set[str])

    @property
    def rank(self) -> int:
        """Rank of this process in the group."""
        return 0 if self.group is None else self.group.rank

    @property
    def num_ranks(self) -> int:
        """Number of processes."""
        return 1 if self.group is None else self.group.size

    def find_lacking(self, distinct: dict[str, PlannedMedium]) -> list[bool]:
        """The media missing from the store. One rank checks each file; memory counts if all ranks have the entry."""
        seen = [
            (self.store.holds(digest), place % self.num_ranks == self.rank and self.store.disk.contains(digest))
            for place, digest in enumerate(distinct)
        ]
        reports = exchange_objects(seen, self.group)
        lacking = [
            not (all(held for held, _ in of_ranks) or any(on_disk for _, on_disk in of_ranks))
            for of_ranks in zip(*reports, strict=True)
        ]
        own = lacking[self.rank :: self.num_ranks]
        self.store.lookups.misses += sum(own)
        self.store.lookups.hits += len(own) - sum(own)
        return lacking

    def encode_share(self, medium: PlannedMedium, bounds: Sequence[int]) -> None:
        """Decode and encode this rank's frames of a medium, and store the rows."""
        plan, start, stop = medium.plan, bounds[self.rank], bounds[self.rank + 1]
        if start == stop:
            return
        key, num_rows = plan.key, (stop - start) * plan.rows_per_group

        def chunks() -> Iterator[Tensor]:
            return self.encoder.encode_groups(medium.video, plan, start, stop)

        try:
            try:
                if stop - start == plan.layout.num_groups:
                    self.store.disk.write(key.to_json(), num_rows, chunks)
                else:
                    first_row = start * plan.rows_per_group
                    self.store.disk.write_part(key.to_json(), first_row, first_row + num_rows, chunks)
            except DiskRefusedError as refusal:
                self.store.report(refusal)
                self.rows_in_memory[key.digest] = torch.cat(list(chunks()))
        except Exception as error:  # a reader can raise anything, and the other ranks must learn of every failure
            self.failures[key.digest] = _describe(error)

    def agree(self) -> None:
        """Share with all ranks what failed and what could not be written to disk."""
        reports = exchange_objects((self.failures, set(self.rows_in_memory)), self.group)
        self.failures = {digest: failure for failures, _ in reports for digest, failure in failures.items()}
        self.refused = {digest for _, refused in reports for digest in refused} - self.failures.keys()

    def join(self, medium: PlannedMedium, bounds: Sequence[int]) -> None:
        """Merge the parts of several ranks into one entry; the rank with the first part does it."""
        plan = medium.plan
        digest, rows = plan.key.digest, [bound * plan.rows_per_group for bound in bounds]
        owners = _owners(bounds)
        if len(owners) == 1 or owners[0] != self.rank or digest in self.refused:
            return
        if digest not in self.failures:
            try:
                self.store.disk.join_parts(plan.key.to_json(), rows)
            except DiskRefusedError as refusal:
                self.store.report(refusal)
                self.rows_in_memory[digest] = torch.cat(list(self.store.disk.read_parts(plan.key.to_json(), rows)))
            except EngineError as error:
                self.failures[digest] = _describe(error)
        self.store.disk.remove_parts(plan.key.to_json(), rows)

    def keep_refused(self, medium: PlannedMedium, bounds: Sequence[int]) -> None:
        """Copy rows that could not be written to disk into every rank's memory."""
        plan = medium.plan
        digest = plan.key.digest
        if digest not in self.refused:
            return
        mine = self.rows_in_memory.get(digest)
        reports = exchange_objects(None if mine is None else (tuple(mine.shape), mine.dtype), self.group)
        shape, dtype = next(report for report in reports if report is not None)
        is_joined = any(report is not None and report[0][0] == plan.num_rows for report in reports)
        if not is_joined and mine is None and bounds[self.rank] < bounds[self.rank + 1]:
            # This rank's part was written to disk, another rank's was not.
            ends = [bound * plan.rows_per_group for bound in bounds[self.rank : self.rank + 2]]
            mine = torch.cat(list(self.store.disk.read_parts(plan.key.to_json(), ends)))
            self.store.disk.remove_parts(plan.key.to_json(), ends)
        local = torch.empty((0, *shape[1:]), dtype=dtype) if mine is None else mine
        lengths = exchange_objects(local.shape[0], self.group)
        whole = local if self.group is None else gather_tokens(local, lengths, self.group)
        self.store.hold(digest, whole, is_encode=self.rank == 0)


def _describe(error: Exception) -> UnusableMedium:
    lines = str(error).splitlines() or [type(error).__name__]
    return UnusableMedium(message=lines[0], is_unreadable=isinstance(error, UnreadableMediumError))


def _owners(bounds: Sequence[int]) -> list[int]:
    """Ranks with at least one group."""
    return [rank for rank in range(len(bounds) - 1) if bounds[rank + 1] > bounds[rank]]
