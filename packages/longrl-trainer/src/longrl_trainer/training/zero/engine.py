"""A policy's language model under a DeepSpeed engine, as the passes that all ranks make together.

DeepSpeed gets decoder and head alone; the media encoder stays whole on every rank. The one forward pass of training,
`mrsp_engine.row_scorer.RowScorer`, runs within the engine's. A step has as many backward passes as it has rows, and the
step itself says when they are complete (`managed_gradient_accumulation`). DeepSpeed divides gradients by the number of
ranks, and for ZeRO-3 no setting turns that off; since the weights of the loss are global already
(`mrsp_engine.logprobs`), every loss is multiplied by that number, which is exact for powers of two.

Weights are computed in the policy's dtype; gradients are added up in float32, and the optimizer's copies and moments
are float32 too. DeepSpeed knows no other, so float64 is refused (`longrl_trainer.training.zero.limits`).
"""

import importlib
import os
import warnings
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from longrl_trainer.config.sections import OffloadName
from mrsp_engine.families.base import Policy
from mrsp_engine.row_scorer import row_scorer_of
from mrsp_engine.rows import PackedRow

__all__ = ["ZeroPasses", "start_engine"]

# DeepSpeed calls torch's exchanges by their former names.
warnings.filterwarnings("ignore", message=r"`torch\.distributed\.\w+` is deprecated", category=FutureWarning)

BUCKET_NUMBERS = 2**26
"""Gradients are sent in pieces of about so many numbers, for which a buffer of 256 MiB exists."""


class ZeroPasses:
    """See `mrsp_engine.families.adapters.JointPasses`.

    Args:
        engine: DeepSpeed's.
        num_ranks: All ranks.
    """

    def __init__(self, engine: Any, num_ranks: int) -> None:
        self.engine = engine
        self._num_ranks = num_ranks

    def forward(self, row: PackedRow, /, **settings: Any) -> tuple[Tensor, Tensor]:
        """See `JointPasses.forward`."""
        return cast(tuple[Tensor, Tensor], self.engine(row, **settings))

    def backward(self, loss: Tensor, /) -> None:
        """See `JointPasses.backward`."""
        self.engine.backward(loss * self._num_ranks)

    def largest(self, number: int, /) -> int:
        """See `JointPasses.largest`."""
        numbers = torch.tensor(number, device=self.engine.device)
        torch.distributed.all_reduce(numbers, torch.distributed.ReduceOp.MAX)
        return int(numbers)


class _LanguageModel(nn.Module):
    """Decoder and head, which the policy's row scorer calls."""

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.decoder, self.head = policy.decoder, policy.language_model_head
        self._policy = policy

    def forward(self, row: PackedRow, **settings: Any) -> tuple[Tensor, Tensor]:
        """See `RowScorer.forward`."""
        return cast(tuple[Tensor, Tensor], row_scorer_of(self._policy)(row, **settings))


def start_engine(
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    *,
    stage: Literal[2, 3],
    offload: OffloadName,
    max_gradient_norm: float,
    num_ranks: int,
) -> ZeroPasses:
    """Spread the policy over the ranks, from now on; all ranks call this together, with the same weights.

    Args:
        policy: The policy, whose trained weights all belong to its language model.
        optimizer: The optimizer of these weights; it gets DeepSpeed's flat parts of them instead.
        stage: 2 spreads gradients and the optimizer's copies and moments, 3 the weights as well.
        offload: What is kept in host memory.
        max_gradient_norm: Gradients with a larger norm are scaled down to this norm.
        num_ranks: All processes of the default group.
    """
    os.environ.setdefault("DS_ACCELERATOR", policy.device.type)  # otherwise it takes a GPU where there is one
    os.environ.setdefault("LOCAL_RANK", str(policy.device.index or 0))  # which torchrun sets
    in_host_memory = {"device": "cpu", "pin_memory": policy.device.type == "cuda"}
    spread: dict[str, Any] = {"stage": stage, "reduce_bucket_size": BUCKET_NUMBERS}
    if offload != "none":
        spread["offload_optimizer"] = in_host_memory
    if offload == "all":
        spread["offload_param"] = in_host_memory
    engine, *_ = cast(Any, importlib.import_module("deepspeed")).initialize(
        model=_LanguageModel(policy),
        optimizer=optimizer,
        config={
            "train_micro_batch_size_per_gpu": 1,
            "managed_gradient_accumulation": False,
            "gradient_clipping": max_gradient_norm,
            "bf16": {"enabled": policy.dtype == torch.bfloat16},
            "data_types": {"grad_accum_dtype": "fp32"},
            "communication_data_type": "fp32",
            "zero_force_ds_cpu_optimizer": False,
            "zero_optimization": spread,
        },
        dist_init_required=False,
    )
    passes = ZeroPasses(engine, num_ranks)
    policy.joint_passes = passes
    return passes
