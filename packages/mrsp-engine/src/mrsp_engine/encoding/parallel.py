"""Stage 1: the frames of all media of a step, split over all ranks, each frame decoded and encoded by one of them.

Groups of frames (temporal patches) form one sequence, medium after medium, which is cut into runs of equal cost; one
rule thus splits a long video over all ranks and distributes many short ones. Ranks exchange only names: the rows meet
in the store. A rank that can't use a medium tells the others, and all of them drop it.

Where the store keeps nothing, or keeps features or frames instead of embeddings, `encode_live` and `encode_stored` do
the rest in each step: they split the frames the same way and gather rows with their gradients.

Shape legend: N embedding rows of a medium, D their width.
"""

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from math import ceil
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mrsp_engine.distributed.collectives import exchange_objects, gather_tokens
from mrsp_engine.distributed.process_groups import SequenceGroup
from mrsp_engine.embeddings.reference import MediaReference
from mrsp_engine.embeddings.store import EmbeddingStore
from mrsp_engine.encoding.frame_encoder import EncodingPlan, FrameEncoder, FrameLayout
from mrsp_engine.encoding.rank_share import EncodingWork, PlannedMedium, UnusableMedium
from mrsp_engine.errors import EngineError

__all__ = ["PlannedMedium", "UnusableMedium", "divide_groups", "encode_live", "encode_media", "encode_stored"]


def divide_groups(media: Sequence[tuple[int, float]], num_ranks: int) -> list[list[int]]:
    """Divide groups of frames among ranks so that costs are even.

    Args:
        media: Number of groups, and cost of one group, of every medium.
        num_ranks: Number of ranks.

    Returns:
        For every medium `num_ranks + 1` bounds; rank r has the groups from bound r to bound r + 1. No rank has more
        than an even share plus one group of the most expensive kind.
    """
    ends = list(accumulate((num_groups * cost for num_groups, cost in media), initial=0.0))
    share = ends[-1] / num_ranks
    bounds: list[list[int]] = []
    for (num_groups, cost), offset in zip(media, ends, strict=False):
        # A group belongs to the rank whose run contains its middle.
        inner = (ceil((share * rank - offset) / cost - 0.5) for rank in range(1, num_ranks))
        bounds.append([0, *(min(max(bound, 0), num_groups) for bound in inner), num_groups])
    return bounds


@torch.no_grad()
def encode_media(
    encoder: FrameEncoder, media: Sequence[PlannedMedium], store: EmbeddingStore, group: SequenceGroup | None = None
) -> list[MediaReference | UnusableMedium]:
    """Return references to media, encoding what the store lacks; every rank of a group calls this with the same media.

    All ranks must use the same store folder. Where writing to disk fails, every rank keeps the rows in memory.

    Args:
        encoder: The family's encoder, with the same weights on every rank.
        media: The media of a step, in any number and of any sizes; duplicates are encoded once.
        store: Where the embeddings go.
        group: The ranks among which the frames are split; this process alone by default.

    Raises:
        EngineError: Neither disk nor memory can hold an embedding.
    """
    work = EncodingWork(encoder=encoder, store=store, group=group)
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


def encode_live(
    encoder: FrameEncoder, media: Sequence[PlannedMedium], group: SequenceGroup | None = None
) -> dict[str, Tensor]:
    """Decode and encode media with gradients, for a step in which tower or projector are trained.

    Pass the result to `EmbeddingStore.lend` around the step: every pass then uses these rows, and the gradients of all
    responses add up in one encoding. Activations are recomputed in the backward pass, so that they exist for a few
    frames at a time.

    Args:
        encoder: The family's encoder.
        media: The media of the step.
        group: The ranks among which the frames are split. Each ends with its share of the encoder's gradients, to be
            summed like all others by `mrsp_engine.distributed.collectives.sum_gradients`.

    Returns:
        All rows [N, D] of every medium, by the digest of its embedding's key, on every rank.
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
    """The same from what `encode_media` stored instead of embeddings; features only need the projector.

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
    """Encode what `read` returns for a run of groups: resized frames, or features."""

    def project(modality: str, features: Tensor, layout: FrameLayout) -> Tensor:
        with encoder.in_turn:
            return encoder.project(modality, features, layout)

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
                make, given = project, given.to(device)
            else:
                make = encoder.encode
                per_group = plan.layout.frames_per_group
                encoder.count_frames(len(plan.frame_indices[first * per_group : last * per_group]))
            parts.append(cast(Tensor, checkpoint(make, plan.modality, given, plan.layout, use_reentrant=False)))
        if group is None:
            live[digest] = torch.cat(parts)
            continue
        mine = (tuple(parts[0].shape[1:]), parts[0].dtype) if parts else None
        width, dtype = next(report for report in exchange_objects(mine, group) if report is not None)
        # A rank without frames takes part in the backward exchange too, so its empty part needs a gradient.
        local = torch.cat(parts) if parts else torch.zeros((0, *width), dtype=dtype, device=device, requires_grad=True)
        lengths = [(end - start) * plan.tokens_per_group for start, end in pairwise(bounds)]
        live[digest] = gather_tokens(local, lengths, group)
    return live
