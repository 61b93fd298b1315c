"""New weights for a running vLLM, in place of those that it was started with."""

from typing import Any, cast

import torch

from mrsp_engine.rollout.base import WeightSource, language_weights

__all__ = ["reload_weights"]


def reload_weights(llm: Any, policy: WeightSource) -> None:
    """Give vLLM all weights of a policy that it needs, one at a time; what it computed before is not discarded."""
    llm.collective_rpc("reload_weights", kwargs={"weights_iterator": language_weights(policy)})
    llm.apply_model(_repack_copies)


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
