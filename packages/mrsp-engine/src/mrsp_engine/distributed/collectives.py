"""Differentiable exchanges between the ranks of a sequence group.

All use one transport: messages between pairs of ranks, posted together and awaited together. Slices may be uneven or
empty, nothing is padded, and computation between posting and waiting overlaps with the transfer.

With `swap` and `gather_results` the gradient a rank ends up with covers only the work it did, and summing parameter
gradients over the group (`sum_gradients`) gives exactly what one rank alone would have computed. The loss itself is not
summed.

Exchanges also match in the backward pass: autograd runs the nodes of one device in reverse order of creation, so ranks
that exchanged in the same order do so in reverse. This requires every exchange to be part of every rank's graph: a rank
that needs nothing of a result must still use an empty slice of it, or the others wait for it forever.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from mrsp_engine.distributed.process_groups import SequenceGroup
from mrsp_engine.distributed.waiting import messages

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True, eq=False)
class Transfer:
    """Messages in flight: what was posted, and the buffers that must live until it has arrived."""

    works: Sequence[dist.Work]
    sent: Sequence[Tensor]
    received: Mapping[int, Tensor]

    def wait(self) -> Mapping[int, Tensor]:
        """Wait for all messages and return what was received, by rank."""
        with messages():
            for work in self.works:
                work.wait()
        return self.received


def start_transfer(sends: Mapping[int, Tensor], receives: Mapping[int, Tensor], group: SequenceGroup) -> Transfer:
    """Post messages to and from other ranks of the group.

    Messages between two ranks are matched in the order of posting, so all ranks must post their transfers in the same
    order.

    Args:
        sends: A tensor for each receiving rank; empty ones are not sent.
        receives: A contiguous buffer for each sending rank, of the size that is sent.
        group: The ranks.
    """
    sent = {rank: tensor.contiguous() for rank, tensor in sends.items() if tensor.numel()}
    operations = [
        dist.P2POp(dist.isend, tensor, group=group.process_group, group_peer=rank) for rank, tensor in sent.items()
    ]
    operations += [
        dist.P2POp(dist.irecv, buffer, group=group.process_group, group_peer=rank)
        for rank, buffer in receives.items()
        if buffer.numel()
    ]
    works = dist.batch_isend_irecv(operations) if operations else []
    return Transfer(works, tuple(sent.values()), receives)


def swap(pieces: Sequence[Tensor], rows: Sequence[int], group: SequenceGroup) -> tuple[Tensor, ...]:
    """Send one piece to every rank and receive one from each; the backward pass sends the gradients back the same way.

    Args:
        pieces: A piece [rows, …] for each rank of the group, this one included.
        rows: Number of rows that come from each rank; beyond the first dimension they have the shape of this rank's
            piece.
        group: The ranks; every one must take part, with empty pieces if necessary.

    Returns:
        What was received from each rank, in rank order.
    """
    return cast(tuple[Tensor, ...], _Swap.apply(tuple(rows), group, *pieces))


def gather_tokens(local: Tensor, lengths: Sequence[int], group: SequenceGroup) -> Tensor:
    """Join the ranks' slices [lengths[rank], …] in rank order for computations that differ between ranks.

    The backward pass gives every rank the sum of the gradients that all ranks have for its slice.
    """
    return torch.cat(swap([local] * group.size, lengths, group))


def gather_results(local: Tensor, lengths: Sequence[int], group: SequenceGroup) -> Tensor:
    """Join the ranks' slices [lengths[rank], …] in rank order for a loss that is the same on every rank.

    Every rank then holds the same gradient, so the backward pass takes the rank's own slice and sends nothing.
    """
    return cast(Tensor, _GatherResults.apply(local, tuple(lengths), group))


def exchange_objects(value: Value, group: SequenceGroup | None) -> list[Value]:
    """The value of every rank, in rank order; without a group, only this process's. For plain objects, not tensors."""
    if group is None:
        return [value]
    values: list[Any] = [None] * group.size
    dist.all_gather_object(values, value, group=group.process_group)
    return values


def sum_gradients(parameters: nn.Module | Iterable[nn.Parameter], group: SequenceGroup) -> None:
    """Add up the gradients of all trainable parameters over the group, in place.

    A parameter without a gradient on this rank counts as zero, so every rank ends with the same set of gradients. Those
    of sharded parameters are left as they are: their own backward pass adds them up.
    """
    every = parameters.parameters() if isinstance(parameters, nn.Module) else parameters
    trainable = [parameter for parameter in every if parameter.requires_grad and not isinstance(parameter, DTensor)]
    by_kind: dict[tuple[torch.dtype, torch.device], list[nn.Parameter]] = {}
    for parameter in trainable:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        by_kind.setdefault((parameter.dtype, parameter.device), []).append(parameter)
    for members in by_kind.values():
        gradients = [cast(Tensor, member.grad) for member in members]
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        dist.all_reduce(flat, group=group.process_group)
        for gradient, summed in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(summed.view_as(gradient))


def _swapped(pieces: Sequence[Tensor], shapes: Sequence[Sequence[int]], group: SequenceGroup) -> tuple[Tensor, ...]:
    own = pieces[group.rank]
    others = [rank for rank in range(group.size) if rank != group.rank]
    buffers = {rank: own.new_empty(tuple(shapes[rank])) for rank in others}
    received = start_transfer({rank: pieces[rank] for rank in others}, buffers, group).wait()
    # This rank's piece stays here; a copy, because an autograd function must not hand out its input as an output.
    return tuple(own.clone() if rank == group.rank else received[rank] for rank in range(group.size))


class _Swap(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: tuple[int, ...], group: SequenceGroup, *pieces: Tensor) -> tuple[Tensor, ...]:
        ctx.shapes, ctx.group = [piece.shape for piece in pieces], group
        return _swapped(pieces, [(count, *pieces[group.rank].shape[1:]) for count in rows], group)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *_swapped(grad_outputs, ctx.shapes, ctx.group)


class _GatherResults(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, local: Tensor, lengths: tuple[int, ...], group: SequenceGroup) -> Tensor:
        ctx.lengths, ctx.group = lengths, group
        return torch.cat(_swapped([local] * group.size, [(length, *local.shape[1:]) for length in lengths], group))

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        lengths: tuple[int, ...] = ctx.lengths
        return grad_outputs[0].split(lengths)[ctx.group.rank].contiguous(), None, None
