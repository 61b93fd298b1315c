"""New weights for a running vLLM, in place of those that it was started with."""

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor

from mrsp_engine.rollout.base import WeightSource, language_weights

__all__ = ["reload_weights"]


def reload_weights(llm: Any, policy: WeightSource) -> int:
    """Give vLLM all weights of a policy that it needs, one at a time; what it computed before is not discarded.

    Returns:
        Their size in bytes.
    """
    sizes: list[int] = []

    def count() -> Iterator[tuple[str, Tensor]]:
        for name, tensor in language_weights(policy):
            sizes.append(tensor.nbytes)
            yield name, tensor

    llm.collective_rpc("reload_weights", kwargs={"weights_iterator": count()})
    llm.apply_model(_repack_copies)
    return sum(sizes)


def _repack_copies(model: Any) -> None:
    """Refresh the packed copies of weights that vLLM makes for CPUs.

    Reloading refreshes them for every layer that receives weights, but not for an output layer tied to the input, and
    for experts only the first time.
    """
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
    from vllm.platforms import current_platform

    for module in cast(torch.nn.Module, model).modules():
        method: Any = getattr(module, "quant_method", None)
        if isinstance(module, ParallelLMHead):
            method.process_weights_after_loading(module)
        elif current_platform.is_cpu() and getattr(method, "moe_kernel", None) is not None:
            method.moe_kernel.fused_experts.process_weights_after_loading(module)
