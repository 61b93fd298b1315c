"""A policy's language model spread over ranks by FSDP2 (`torch.distributed.fsdp.fully_shard`).

Every rank keeps a part of each weight, of its gradient and of the optimizer's state. A layer's whole weights exist only
while the layer is computed. Units are the decoder's layers; embedding, head and last norm are one unit, that of the
whole forward pass, because a tied pair must not be in two. The media encoder stays whole on every rank. Weights that
haven't been read until then (`mrsp_engine.families.load_policy`) are read by each rank as far as it holds them.

Trained weights are kept in at least float32 and computed in the policy's own dtype. Gradients are reduced in at least
float32 and summed, never averaged: the weights of the loss are global already (`mrsp_engine.logprobs`).
"""

from collections.abc import Iterable

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor

from mrsp_engine.distributed.process_groups import SequenceGroup
from mrsp_engine.errors import EngineUsageError
from mrsp_engine.families.base import Policy
from mrsp_engine.families.weight_slices import WeightSlices
from mrsp_engine.row_scorer import row_scorer_of

__all__ = ["shard_policy"]


def shard_policy(
    policy: Policy, group: SequenceGroup, *, shard_ranks: int | None = None, offload: bool = False
) -> None:
    """Spread the language model over the ranks; all ranks call this together, once, before an optimizer exists.

    Weights that are not trained keep their dtype. From now on the model runs only through
    `mrsp_engine.row_scorer.RowScorer`, on all ranks together.

    Args:
        policy: The policy, with the same weights on every rank.
        group: All ranks.
        shard_ranks: Number of neighbours that hold one copy together, such as the ranks of a node; all ranks if None.
        offload: Keep the parts of weights and gradients in host memory, where an optimizer then updates them.

    Raises:
        EngineUsageError: The number of ranks can't be divided so.
    """
    mesh = _make_mesh(policy.device, group, shard_ranks)
    computed = policy.dtype
    kept = torch.promote_types(computed, torch.float32)
    scorer = row_scorer_of(policy)
    precision = MixedPrecisionPolicy(
        param_dtype=None if kept == computed else computed, reduce_dtype=kept, cast_forward_inputs=False
    )
    outside, unread = _parameters_outside(policy), policy.unread
    named = [] if unread is None else scorer.named_parameters()
    places = {name: unread.find(weight) for name, weight in named if unread is not None and weight in unread}
    policy.computed_dtype, policy.computed_device = computed, policy.device
    memory = CPUOffloadPolicy(pin_memory=policy.device.type == "cuda") if offload else OffloadPolicy()
    for layer in policy.decoder.get_submodule("layers").children():
        _refine(layer.parameters(), kept, unread)
        fully_shard(layer, mesh=mesh, mp_policy=precision, offload_policy=memory)
    _refine((parameter for parameter in scorer.parameters() if parameter not in outside), kept, unread)
    fully_shard(scorer, mesh=mesh, mp_policy=precision, offload_policy=memory, ignored_params=outside)
    for module in scorer.modules():
        if isinstance(module, FSDPModule):
            _sum_gradients(module)
            # Experts that no token of this rank reached still take part.
            module.set_reduce_scatter_unused_params(True, recurse=False)
    if unread is not None:
        for name, parameter in scorer.named_parameters():
            if parameter not in outside and name in places:
                unread.fill(parameter, places[name])
        policy.unread = None


def _sum_gradients(module: FSDPModule) -> None:
    """Leave out the division by the number of ranks."""
    module.set_gradient_divide_factor(1.0)
    module.set_force_sum_reduction_for_comms(True)


def _make_mesh(device: torch.device, group: SequenceGroup, shard_ranks: int | None) -> DeviceMesh:
    if shard_ranks is None or shard_ranks == group.size:
        return DeviceMesh.from_group(group.process_group, device.type)
    if shard_ranks < 1 or group.size % shard_ranks:
        raise EngineUsageError(f"shard_ranks={shard_ranks}: expected a divisor of the number of ranks ({group.size})")
    shape = (group.size // shard_ranks, shard_ranks)
    return init_device_mesh(device.type, shape, mesh_dim_names=("copies", "parts"))


def _parameters_outside(policy: Policy) -> set[nn.Parameter]:
    """Those of the media encoder."""
    inside = {*policy.decoder.parameters(), *policy.language_model_head.parameters()}
    return {parameter for parameter in policy.model.parameters() if parameter not in inside}


def _refine(parameters: Iterable[nn.Parameter], dtype: torch.dtype, unread: WeightSlices | None) -> None:
    """Give trained weights the dtype they are kept in; those that aren't read yet have nothing to convert."""
    for parameter in parameters:
        if parameter.requires_grad and not isinstance(parameter, DTensor):
            is_unread = unread is not None and parameter in unread
            parameter.data = torch.empty_like(parameter, dtype=dtype) if is_unread else parameter.data.to(dtype)
