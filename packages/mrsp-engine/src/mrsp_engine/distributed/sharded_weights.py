"""Weights of which every rank holds a part: whether a model has them, and whole ones one at a time.

Weights sharded by FSDP2 are DTensors; `mrsp_engine.sharding` makes them. Those sharded by DeepSpeed's ZeRO-3 are
ordinary parameters without values, which DeepSpeed has given an id (`ds_id`) and gathers on request.
"""

import importlib
from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def is_sharded(module: nn.Module) -> bool:
    """Whether any weight of the module is sharded."""
    return any(is_sharded_weight(parameter) for parameter in module.parameters())


def is_sharded_weight(weight: Tensor) -> bool:
    """Whether this rank has a part of the weight only."""
    return isinstance(weight, DTensor) or _is_emptied(weight)


def whole_tensor(tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """All parts of a sharded tensor joined, or the tensor itself if it isn't sharded; all ranks call this together.

    Args:
        tensor: The tensor; of ZeRO-3 the parameter itself, since its values are nowhere else.
        dtype: Convert a sharded one of floating-point numbers to this dtype before it is gathered.
    """
    if _is_emptied(tensor):
        with cast(Any, importlib.import_module("deepspeed")).zero.GatheredParameters([tensor]):
            return tensor.detach().clone()
    if not isinstance(tensor, DTensor):
        return tensor
    part: Any = tensor.detach()
    part = part.to(dtype) if dtype is not None and tensor.is_floating_point() else part
    return cast(Tensor, part.full_tensor())


def whole_shape(tensor: Tensor) -> torch.Size:
    """The shape of the whole tensor."""
    return cast(torch.Size, cast(Any, tensor).ds_shape) if _is_emptied(tensor) else tensor.shape


def has_first_parts(module: nn.Module) -> bool:
    """Whether this rank is the first of those that hold the module's weights together; alone it is."""
    for parameter in module.parameters():
        if isinstance(parameter, DTensor):
            return not any(parameter.device_mesh.get_coordinate() or ())
        if _is_emptied(parameter):
            return torch.distributed.get_rank(cast(Any, parameter).ds_process_group) == 0
    return True


def gather_weights(
    named: Iterable[tuple[str, Tensor]], *, is_kept: bool, dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """Whole tensors by name; all ranks of sharded ones call this together, with the same names in the same order.

    Sharded tensors are gathered one after the other, and then lie in host memory. A parameter with two names is one
    tensor.

    Args:
        named: Names and tensors.
        is_kept: Whether this rank needs them; otherwise it gets their shapes (on the device "meta").
        dtype: Convert sharded tensors of floating-point numbers to this dtype.
    """
    of_parameters: dict[int, Tensor] = {}  # which exist as long as their model, so no other object gets their id
    found: dict[str, Tensor] = {}
    for name, tensor in named:
        if id(tensor) in of_parameters:
            found[name] = of_parameters[id(tensor)]
            continue
        whole = whole_tensor(tensor, dtype).detach()
        whole = whole.cpu() if is_sharded_weight(tensor) else whole
        found[name] = whole if is_kept else torch.empty_like(whole, device="meta")
        if isinstance(tensor, nn.Parameter):
            of_parameters[id(tensor)] = found[name]
    return found


def _is_emptied(tensor: Tensor) -> bool:
    """Whether ZeRO-3 keeps the tensor's values."""
    return hasattr(tensor, "ds_id")
