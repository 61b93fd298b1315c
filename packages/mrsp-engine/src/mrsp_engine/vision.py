"""Stage 1: the frames of all media of a step, split over all ranks, each frame decoded and encoded by one of them.

Groups of frames (temporal patches) stand in one line, medium after medium, and the line is cut into runs of equal cost;
so one long video is split over all ranks, and many short ones are dealt out, by the same rule. What travels between
ranks are names: rows meet in the store. A rank that can't use a medium tells the others, and all of them drop it.

Where the store keeps nothing, or features or frames in place of embeddings, `encode_live` and `encode_stored` do in
each step what is left to do: they split the frames the same way and gather rows with their gradients.

Shape legend: N embedding rows of a medium, D their width.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from math import ceil
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mrsp_engine.collectives import gather_tokens
from mrsp_engine.embeddings.entries import DiskRefusedError
from mrsp_engine.embeddings.store import EmbeddingStore
from mrsp_engine.errors import EngineError
from mrsp_engine.families.frame_encoder import EncodingPlan, FrameEncoder
from mrsp_engine.media import MediaReference
from mrsp_engine.process_groups import SequenceGroup
from mrsp_engine.video import Video

__all__ = ["Medium", "UnusableMedium", "divide_groups", "encode_live", "encode_media", "encode_stored"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Medium:
    """A video or an image, and which of its frames are wanted.

    Attributes:
        video: Reads the frames; on every rank the same.
        plan: What is to be encoded, from `FrameEncoder.plan` or `FrameEncoder.plan_image`.
    """

    video: Video
    plan: EncodingPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class UnusableMedium:
    """What takes the place of a reference when a medium can't be decoded or encoded; the same on every rank.

    Attributes:
        message: One line that says why.
        error_names: The class of the error and those it derives from, by name, so that a caller can tell a file that
            can't be read from an encoder that fails.
    """

    message: str
    error_names: tuple[str, ...]


def divide_groups(media: Sequence[tuple[int, float]], num_ranks: int) -> list[list[int]]:
    """Divide groups of frames among ranks so that costs are even.

    Args:
        media: Number of groups and cost of one group, for every medium.
        num_ranks: Number of ranks.

    Returns:
        For every medium `num_ranks + 1` bounds; rank r has the groups from bound r to bound r + 1. No rank has more
        than an even share and one group of the dearest kind.
    """
    ends = list(accumulate((num_groups * cost for num_groups, cost in media), initial=0.0))
    share = ends[-1] / num_ranks
    bounds: list[list[int]] = []
    for (num_groups, cost), offset in zip(media, ends, strict=False):
        # A group belongs to the rank in whose stretch of the line its middle lies.
        inner = (ceil((share * rank - offset) / cost - 0.5) for rank in range(1, num_ranks))
        bounds.append([0, *(min(max(bound, 0), num_groups) for bound in inner), num_groups])
    return bounds


@torch.no_grad()
def encode_media(
    encoder: FrameEncoder, media: Sequence[Medium], store: EmbeddingStore, group: SequenceGroup | None = None
) -> list[MediaReference | UnusableMedium]:
    """Refer to media, encoding what the store lacks; every rank of a group calls with the same media.

    The ranks' stores must be one folder. Where the disk refuses, every rank gets the rows into its memory.

    Args:
        encoder: The family's encoder, with the same weights on every rank.
        media: The media of a step, in any number and of any sizes; the same one twice is encoded once.
        store: Where the embeddings go.
        group: The ranks among which the frames are split; this process alone if not given.

    Raises:
        EngineError: Neither disk nor memory can hold an embedding.
    """
    work = _Work(encoder=encoder, store=store, group=group)
    distinct = {medium.plan.key.digest: medium for medium in media}
    lacking = [
        medium for medium, is_lacking in zip(distinct.values(), work.find_lacking(distinct), strict=True) if is_lacking
    ]
    sizes = [(medium.plan.layout.num_groups, medium.plan.layout.operations_per_group) for medium in lacking]
    all_bounds = divide_groups(sizes, work.num_ranks)
    for medium, bounds in zip(lacking, all_bounds, strict=True):
        work.encode_share(medium, bounds)
    work.agree()
    for medium, bounds in zip(lacking, all_bounds, strict=True):
        work.join(medium, bounds)
    work.agree()
    for medium, bounds in zip(lacking, all_bounds, strict=True):
        work.keep_refused(medium, bounds)
    return [
        work.failures[digest] if digest in work.failures else distinct[digest].plan.reference
        for digest in (medium.plan.key.digest for medium in media)
    ]


@dataclass(slots=True, kw_only=True)
class _Work:
    """One rank's part in `encode_media`.

    Attributes:
        failures: Why a medium can't be used, by digest.
        rows_in_memory: Rows that the disk refused, by digest.
        refused: Digests of media whose rows aren't on disk as a whole; the same on every rank once agreed on.
    """

    encoder: FrameEncoder
    store: EmbeddingStore
    group: SequenceGroup | None
    failures: dict[str, UnusableMedium] = field(default_factory=dict[str, UnusableMedium])
    rows_in_memory: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    refused: set[str] = field(default_factory=set[str])

    @property
    def rank(self) -> int:
        return 0 if self.group is None else self.group.rank

    @property
    def num_ranks(self) -> int:
        return 1 if self.group is None else self.group.size

    def find_lacking(self, distinct: dict[str, Medium]) -> list[bool]:
        """Which media no store has. Each file is checked by one rank; memory must hold it on every rank."""
        seen = [
            (self.store.holds(digest), place % self.num_ranks == self.rank and self.store.disk.contains(digest))
            for place, digest in enumerate(distinct)
        ]
        reports = self._exchange(seen)
        return [
            not (all(held for held, _ in of_ranks) or any(on_disk for _, on_disk in of_ranks))
            for of_ranks in zip(*reports, strict=True)
        ]

    def encode_share(self, medium: Medium, bounds: Sequence[int]) -> None:
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
        except Exception as error:  # a reader's errors are of any kind, and the other ranks must hear of all of them
            self.failures[key.digest] = _describe(error)

    def agree(self) -> None:
        """After this all ranks know what failed and what the disk refused."""
        reports = self._exchange((self.failures, set(self.rows_in_memory)))
        self.failures = {digest: failure for failures, _ in reports for digest, failure in failures.items()}
        self.refused = {digest for _, refused in reports for digest in refused} - self.failures.keys()

    def join(self, medium: Medium, bounds: Sequence[int]) -> None:
        """Make one entry of the parts of several ranks; the rank with the first part does it."""
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

    def keep_refused(self, medium: Medium, bounds: Sequence[int]) -> None:
        """Bring rows that the disk refused into every rank's memory."""
        plan = medium.plan
        digest = plan.key.digest
        if digest not in self.refused:
            return
        mine = self.rows_in_memory.get(digest)
        reports = self._exchange(None if mine is None else (tuple(mine.shape), mine.dtype))
        shape, dtype = next(report for report in reports if report is not None)
        is_joined = any(report is not None and report[0][0] == plan.num_rows for report in reports)
        if not is_joined and mine is None and bounds[self.rank] < bounds[self.rank + 1]:
            # The disk took this rank's part and refused another's.
            ends = [bound * plan.rows_per_group for bound in bounds[self.rank : self.rank + 2]]
            mine = torch.cat(list(self.store.disk.read_parts(plan.key.to_json(), ends)))
            self.store.disk.remove_parts(plan.key.to_json(), ends)
        local = torch.empty((0, *shape[1:]), dtype=dtype) if mine is None else mine
        lengths = self._exchange(local.shape[0])
        whole = local if self.group is None else gather_tokens(local, lengths, self.group)
        self.store.hold(digest, whole, is_encode=self.rank == 0)

    def _exchange(self, report: Any) -> list[Any]:
        """What every rank reports, in rank order."""
        if self.group is None:
            return [report]
        reports: list[Any] = [None] * self.group.size
        dist.all_gather_object(reports, report, group=self.group.process_group)
        return reports


def encode_live(
    encoder: FrameEncoder, media: Sequence[Medium], group: SequenceGroup | None = None
) -> dict[str, Tensor]:
    """Decode and encode media with gradients, for a step in which tower or projector are trained.

    Hand the result to `EmbeddingStore.lend` around the step: every pass then uses these rows, and the gradients of all
    responses meet in the one encoding. Activations of a stretch of frames are computed again in backward, so that they
    exist for one stretch at a time.

    Args:
        encoder: The family's encoder.
        media: The media of the step.
        group: The ranks among which the frames are split. Each ends with its share of the encoder's gradients, to be
            added up like all others by `mrsp_engine.collectives.sum_gradients`.

    Returns:
        Rows [N, D] of every medium by the digest of its embedding's key, whole on every rank.
    """
    videos = {medium.plan.reference.key: medium.video for medium in media}
    return _encode_shared(
        encoder,
        [medium.plan for medium in media],
        lambda plan, first, last: encoder.read_frames(videos[plan.reference.key], plan, first, last),
        group,
    )


def encode_stored(
    encoder: FrameEncoder, plans: Sequence[EncodingPlan], store: EmbeddingStore, group: SequenceGroup | None = None
) -> dict[str, Tensor]:
    """The same from what `encode_media` stored in place of embeddings; features only have to be projected.

    Raises:
        EngineError: The store has lost what an embedding is made from.
    """

    def read(plan: EncodingPlan, first: int, last: int) -> Tensor | NDArray[np.uint8]:
        rows = store.read_rows(plan.key, first, last)
        if rows is None:
            raise EngineError(
                f"{plan.key.content} {plan.key.digest[:12]}… of a {plan.modality} are not in the store {store.folder}; "
                "give the store more room, or set the folder they were stored in"
            )
        return rows.flatten(0, 1).numpy() if plan.key.content == "frames" else rows

    return _encode_shared(encoder, plans, read, group)


def _encode_shared(
    encoder: FrameEncoder,
    plans: Sequence[EncodingPlan],
    read: Callable[[EncodingPlan, int, int], Tensor | NDArray[np.uint8]],
    group: SequenceGroup | None,
) -> dict[str, Tensor]:
    """Encode what `read` gives of a run of groups: resized frames, or features."""
    distinct = {plan.reference.key: plan for plan in plans}
    rank, num_ranks = (0, 1) if group is None else (group.rank, group.size)
    sizes = [(plan.layout.num_groups, plan.layout.operations_per_group) for plan in distinct.values()]
    device = next(encoder.parts.parameters()).device
    live: dict[str, Tensor] = {}
    for (digest, plan), bounds in zip(distinct.items(), divide_groups(sizes, num_ranks), strict=True):
        parts: list[Tensor] = []
        for first, last in encoder.stretches(plan.layout, bounds[rank], bounds[rank + 1]):
            given = read(plan, first, last)
            if isinstance(given, Tensor):
                make, given = encoder.project, given.to(device)
            else:
                make = encoder.encode
                per_group = plan.layout.frames_per_group
                encoder.frames_encoded += len(plan.frame_indices[first * per_group : last * per_group])
            parts.append(cast(Tensor, checkpoint(make, plan.modality, given, plan.layout, use_reentrant=False)))
        if group is None:
            live[digest] = torch.cat(parts)
            continue
        widths: list[Any] = [None] * num_ranks
        mine = (tuple(parts[0].shape[1:]), parts[0].dtype) if parts else None
        dist.all_gather_object(widths, mine, group=group.process_group)
        width, dtype = next(report for report in widths if report is not None)
        # A rank without frames takes part in the backward exchange too, so its empty part needs a gradient.
        local = torch.cat(parts) if parts else torch.zeros((0, *width), dtype=dtype, device=device, requires_grad=True)
        lengths = [(end - start) * plan.tokens_per_group for start, end in pairwise(bounds)]
        live[digest] = gather_tokens(local, lengths, group)
    return live


def _describe(error: Exception) -> UnusableMedium:
    lines = str(error).splitlines() or [type(error).__name__]
    return UnusableMedium(message=lines[0], error_names=tuple(kind.__name__ for kind in type(error).__mro__))


def _owners(bounds: Sequence[int]) -> list[int]:
    """Ranks with at least one group."""
    return [rank for rank in range(len(bounds) - 1) if bounds[rank + 1] > bounds[rank]]
