"""What the ranks of a sequence group exchange, with gradients.

Two gathers that look alike and differ in their backward pass:

- `gather_tokens` joins slices that *different work* on every rank will consume (keys and values). The gradients that
  arrive on the ranks are parts of one sum, so backward adds them up and hands each rank its slice.
- `gather_results` joins slices that *the same loss* on every rank will consume (log-probs). Every rank then holds the
  same gradient already, so backward takes the rank's own slice and sends nothing.

With both, the gradient a rank ends up with covers only the work it did, and summing parameter gradients over the group
(`sum_gradients`) gives exactly what one rank alone would have computed. The loss itself is not summed.

Slices run along the first dimension, may be uneven, and may be empty.
"""

from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mrsp_engine.process_groups import SequenceGroup


def gather_tokens(local: Tensor, lengths: Sequence[int], group: SequenceGroup) -> Tensor:
    """Join the ranks' slices in rank order: [lengths[rank], …] to [sum(lengths), …]; backward sums over ranks."""
    return cast(Tensor, _GatherTokens.apply(local, tuple(lengths), group))


def gather_results(local: Tensor, lengths: Sequence[int], group: SequenceGroup) -> Tensor:
    """Join the ranks' slices in rank order; backward takes the own slice of a gradient all ranks have in common."""
    return cast(Tensor, _GatherResults.apply(local, tuple(lengths), group))


def sum_gradients(parameters: nn.Module | Iterable[nn.Parameter], group: SequenceGroup) -> None:
    """Add up the gradients of all trainable parameters over the group, in place.

    A parameter without a gradient on this rank counts as zero, so every rank ends with the same set of gradients.
    """
    every = parameters.parameters() if isinstance(parameters, nn.Module) else parameters
    trainable = [parameter for parameter in every if parameter.requires_grad]
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


def _all_gather(local: Tensor, lengths: tuple[int, ...], group: SequenceGroup) -> Tensor:
    """Gather slices of uneven length by padding each to the longest."""
    longest = max(lengths)
    padded = local.new_zeros((longest, *local.shape[1:]))
    padded[: local.shape[0]] = local
    received = [torch.empty_like(padded) for _ in lengths]
    dist.all_gather(received, padded, group=group.process_group)
    return torch.cat([part[:length] for part, length in zip(received, lengths, strict=True)])


class _GatherTokens(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, local: Tensor, lengths: tuple[int, ...], group: SequenceGroup) -> Tensor:
        ctx.lengths, ctx.group = lengths, group
        return _all_gather(local, lengths, group)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        lengths: tuple[int, ...] = ctx.lengths
        group: SequenceGroup = ctx.group
        (gradient,) = grad_outputs
        padded = gradient.new_zeros((len(lengths), max(lengths), *gradient.shape[1:]))
        for row, part in zip(padded, gradient.split(lengths), strict=True):
            row[: part.shape[0]] = part
        mine = torch.empty_like(padded[0])
        dist.reduce_scatter(mine, list(padded.unbind(0)), group=group.process_group)
        return mine[: lengths[group.rank]], None, None


class _GatherResults(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, local: Tensor, lengths: tuple[int, ...], group: SequenceGroup) -> Tensor:
        ctx.lengths, ctx.group = lengths, group
        return _all_gather(local, lengths, group)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        lengths: tuple[int, ...] = ctx.lengths
        return grad_outputs[0].split(lengths)[ctx.group.rank].contiguous(), None, None
