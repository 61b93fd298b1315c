"""Reads the operators with which torch exchanges tensors: what kind, among which ranks, how many bytes."""

import importlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import FakeWork
from torch._subclasses.fake_tensor import FakeTensor

from mrsp_engine.rehearsal.messages import RECEIVE, SEND, Exchange

__all__ = ["FoundExchange", "read_exchange", "skip_exchange", "wait_for"]

_torch_groups: Any = importlib.import_module("torch.distributed.distributed_c10d")

_KINDS = {
    "allreduce_": "all_reduce",
    "allreduce_coalesced_": "all_reduce",
    "broadcast_": "broadcast",
    "reduce_": "reduce",
    "allgather_": "all_gather",
    "_allgather_base_": "all_gather",
    "allgather_into_tensor_coalesced_": "all_gather",
    "_reduce_scatter_base_": "reduce_scatter",
    "reduce_scatter_": "reduce_scatter",
    "reduce_scatter_tensor_coalesced_": "reduce_scatter",
    "alltoall_": "all_to_all",
    "alltoall_base_": "all_to_all",
    "gather_": "gather",
    "scatter_": "scatter",
    "barrier": "barrier",
    "send": SEND,
    "recv_": RECEIVE,
    "all_reduce": "all_reduce",
    "all_reduce_": "all_reduce",
    "broadcast": "broadcast",
    "all_gather_into_tensor": "all_gather",
    "all_gather_into_tensor_out": "all_gather",
    "reduce_scatter_tensor": "reduce_scatter",
    "all_to_all_single": "all_to_all",
}
_ROOTED = {"gather": "input_tensors", "scatter": "output_tensors"}
"""What every rank has of an exchange that one of them gathers or scatters."""
_PARTS = {"_allgather_base_": "gathered weights", "_reduce_scatter_base_": "gradients"}


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundExchange:
    """An exchange, and the tensors in it.

    Attributes:
        exchange: What it is.
        is_real: Whether its tensors have numbers; then it is of plain objects.
        tensors: The fake tensors in it.
        part: What they are, where the operator tells.
    """

    exchange: Exchange
    is_real: bool
    tensors: tuple[Tensor, ...]
    part: str | None


def read_exchange(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], *, place: str) -> FoundExchange | None:
    """What an operator exchanges; None if it only waits for another one."""
    name: str = func.__name__.partition(".")[0]
    if name not in _KINDS:
        if func.namespace == "_c10d_functional" and name in ("wait_tensor", "_wrap_tensor_autograd"):
            return None
        raise NotImplementedError(f"the exchange {func} can't be rehearsed yet")
    values: dict[str, Any] = {
        argument.name: args[position] if position < len(args) else kwargs.get(argument.name)
        for position, argument in enumerate(func._schema.arguments)
    }
    group = _group(values)
    ranks = tuple(dist.get_process_group_ranks(group))
    tensors = [item for value in values.values() for item in _tensors(value)]
    is_real = not any(isinstance(tensor, FakeTensor) for tensor in tensors)
    kind = _KINDS[name]
    peer = values.get("dst", values.get("src")) if kind in (SEND, RECEIVE) else None
    num_bytes = max((sum(tensor.nbytes for tensor in _tensors(value)) for value in values.values()), default=0)
    if func.namespace == "_c10d_functional" and kind == "all_gather":
        num_bytes *= len(ranks)
    elif kind in _ROOTED:  # only one rank has the whole
        num_bytes = sum(tensor.nbytes for tensor in _tensors(values[_ROOTED[kind]])) * len(ranks)
    exchange = Exchange(
        kind="plain objects" if is_real and tensors else kind,
        group=str(group.group_name),
        ranks=ranks,
        num_bytes=num_bytes,
        peer=None if peer is None else ranks[peer],
        place=place,
    )
    return FoundExchange(
        exchange=exchange, is_real=is_real, tensors=tuple(tensors), part=_PARTS.get(name) if not is_real else None
    )


def wait_for(result: Any) -> None:
    """Wait for the end of an exchange that really happens, given the result of its operator."""
    for item in cast(Sequence[Any], result) if isinstance(result, tuple | list) else (result,):
        if isinstance(item, torch.ScriptObject):
            dist.Work.unbox(item).wait()


def skip_exchange(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """The operator's results without an exchange: tensors as they are, and work that is done."""
    if func.namespace == "_c10d_functional":
        return func(*args, **kwargs)  # on fake tensors only their shapes
    results = [FakeWork().boxed() if "Work" in str(returned.type) else args[0] for returned in func._schema.returns]
    return results[0] if len(results) == 1 else tuple(results)


def _group(values: Mapping[str, Any]) -> dist.ProcessGroup:
    for name, value in values.items():
        if name == "process_group":
            return dist.ProcessGroup.unbox(value)
        if name in ("group_name", "group"):
            return _torch_groups._resolve_process_group(value)
    raise ValueError(f"an exchange without a group: {', '.join(values)}")


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, list | tuple):
        return [tensor for item in cast(Iterable[Any], value) for tensor in _tensors(item)]
    return []
