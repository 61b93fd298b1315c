"""AdamW over the parts of weights that DeepSpeed gives every rank, and its state as tensors named by parameter.

DeepSpeed keeps weights and moments in flat pieces of its own, and its checkpoints fit one number of ranks. So none is
written: the state is read and written parameter by parameter, through DeepSpeed's functions for that, and on disk it is
like that of any other sharding. Every rank keeps a slice of each tensor, in host memory, and one tensor is whole at a
time.
"""

import importlib
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor, zeros

from longrl_trainer.config.stages import TrainingConfig
from longrl_trainer.errors import TrainerError
from longrl_trainer.training.optimizer import MOMENTS, STEP, WEIGHT, match_saved
from longrl_trainer.training.zero.engine import start_engine
from mrsp_engine.distributed.process_groups import SequenceGroup
from mrsp_engine.distributed.sharded_weights import is_sharded_weight, whole_shape
from mrsp_engine.families.base import Policy
from mrsp_engine.logprobs import score_nothing

__all__ = ["ZeroOptimizer"]

FLAT_MOMENTS = sorted(MOMENTS[torch.optim.AdamW] - {STEP})


class ZeroOptimizer:
    """See `longrl_trainer.training.optimizer.TrainingOptimizer`; DeepSpeed's engine runs from now on.

    Args:
        policy: The model, whose trained parameters are optimized.
        config: The recipe.
        stage: Of ZeRO.
        group: All ranks.
    """

    def __init__(self, policy: Policy, config: TrainingConfig, *, stage: Literal[2, 3], group: SequenceGroup) -> None:
        self._policy = policy
        self._parameters = {name: weight for name, weight in policy.model.named_parameters() if weight.requires_grad}
        weights = list(self._parameters.values())
        groups = [
            {"params": [weight for weight in weights if weight.dim() > 1], "weight_decay": config.weight_decay},
            {"params": [weight for weight in weights if weight.dim() <= 1], "weight_decay": 0.0},
        ]
        self._adamw = torch.optim.AdamW([of_group for of_group in groups if of_group["params"]], fused=True)
        self._passes = start_engine(
            policy,
            self._adamw,
            stage=stage,
            offload=config.sharding.offload,
            max_gradient_norm=config.max_gradient_norm,
            num_ranks=group.size,
        )
        self._mesh = DeviceMesh.from_group(group.process_group, "cpu")
        for flat in (flat for of_group in self._adamw.param_groups for flat in of_group["params"]):
            # ZeRO-2 finds the moments of the first group alone unless those of all exist before the first step.
            moments = {moment: torch.zeros_like(flat) for moment in FLAT_MOMENTS}
            self._adamw.state[flat] = {STEP: torch.zeros((), device=flat.device), **moments}
        deepspeed: Any = importlib.import_module("deepspeed")
        self._state, self._zero = deepspeed.utils, deepspeed.zero

    def step(self, learning_rate: float) -> float:
        """See `TrainingOptimizer.step`."""
        for of_group in self._adamw.param_groups:
            of_group["lr"] = learning_rate
        self._passes.engine.step()
        norm = float(self._passes.engine.get_global_grad_norm())
        if not math.isfinite(norm):
            raise TrainerError(f"the gradient's norm is {norm}; lower `learning_rate` or check the data of this step")
        return norm

    def state_tensors(self) -> dict[str, Tensor]:
        """See `TrainingOptimizer.state_tensors`; copies, of which every rank has a slice."""
        tensors: dict[str, Tensor] = {}
        for name, weight in self._parameters.items():
            tensors[f"{WEIGHT}/{name}"] = self._slice(self._state.safe_get_full_fp32_param(weight))
        num_steps = max((float(state[STEP]) for state in self._adamw.state.values()), default=0.0)
        for name, weight in self._parameters.items() if num_steps else ():
            for moment in FLAT_MOMENTS:
                whole = self._state.safe_get_full_optimizer_state(weight, moment)
                tensors[f"{moment}/{name}"] = self._slice(whole)
            tensors[f"{STEP}/{name}"] = torch.tensor(num_steps)
        return tensors

    def restore(self, saved: Mapping[str, Tensor], read: Callable[[Mapping[str, Tensor]], None]) -> None:
        """See `TrainingOptimizer.restore`.

        Raises:
            TrainerError: Or not all parameters were updated equally often, since DeepSpeed counts all together.
        """
        shapes = {name: whole_shape(weight) for name, weight in self._parameters.items()}
        kinds = match_saved(saved, {name: (shape, MOMENTS[torch.optim.AdamW]) for name, shape in shapes.items()})
        targets: dict[str, Tensor] = {}
        for name, found in kinds.items():
            for kind in found:
                shape, dtype = shapes[name], saved[f"{kind}/{name}"].dtype
                sliced = zeros(shape, dtype=dtype, device_mesh=self._mesh, placements=[Shard(0)])
                targets[f"{kind}/{name}"] = torch.zeros(()) if kind == STEP else sliced
        read(targets)
        steps = {float(tensor) for key, tensor in targets.items() if key.startswith(f"{STEP}/")}
        if len(steps) > 1:
            raise TrainerError(
                f"some weights of the checkpoint were updated {min(steps):.0f} times, others {max(steps):.0f} times, "
                'which DeepSpeed can\'t continue; set sharding.kind to "fsdp2"'
            )
        self._make_state()
        for name, weight in self._parameters.items():
            for kind in (WEIGHT, *FLAT_MOMENTS):
                target = targets.get(f"{kind}/{name}")
                whole = torch.zeros(shapes[name]) if target is None else cast(DTensor, target).full_tensor()
                self._set(weight, kind, whole.to(self._policy.device, torch.float32))
        for state in self._adamw.state.values():
            state[STEP].fill_(max(steps, default=0.0))

    def _make_state(self) -> None:
        """Have the moments created, by a step that changes nothing; they can't be set before."""
        for of_group in self._adamw.param_groups:
            of_group["lr"] = 0.0
        self._passes.backward(score_nothing(self._policy))
        self._passes.engine.step()

    def _set(self, weight: nn.Parameter, kind: str, whole: Tensor) -> None:
        """Replace a moment, or the float32 copy of a weight and the weight with it."""
        what = "fp32_param" if kind == WEIGHT else "optimizer_state"
        key = () if kind == WEIGHT else (kind,)
        if is_sharded_weight(weight):
            part = _own_part(whole, weight)
            getattr(self._state, f"safe_set_local_{what}")(weight, part, *key)
        else:
            getattr(self._state, f"safe_set_full_{what}")(weight, whole, *key)
        if kind == WEIGHT:
            with torch.no_grad(), self._zero.GatheredParameters([weight], modifier_rank=0):
                weight.copy_(whole)

    def _slice(self, whole: Tensor) -> Tensor:
        """This rank's slice of a tensor that is whole on every rank."""
        cut: Any = distribute_tensor(whole.detach().cpu(), self._mesh, [Shard(0)], src_data_rank=None)
        own = cut.to_local().clone()  # the rest of the whole is freed
        return DTensor.from_local(
            own, self._mesh, [Shard(0)], run_check=False, shape=whole.shape, stride=whole.contiguous().stride()
        )


def _own_part(whole: Tensor, weight: nn.Parameter) -> Tensor:
    """The part of a tensor that ZeRO-3 keeps on this rank: of equal ones, the last of which is padded with zeros."""
    size = int(cast(Any, weight).ds_tensor.numel())
    start = size * torch.distributed.get_rank()
    part = whole.flatten()[start : start + size]
    return nn.functional.pad(part, (0, size - len(part)))
