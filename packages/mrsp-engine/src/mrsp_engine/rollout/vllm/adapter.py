"""The adapter of a sampler that keeps the base weights: vLLM's LoRA, with new matrices after every update.

vLLM finds an adapter by its number and remembers keys and values by its name, so every update has a new number and a
new name: neither old matrices nor what was computed with them can be found again. The module doesn't depend on how
adapters are trained.
"""

import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

from mrsp_engine.errors import EngineError, EngineUsageError
from mrsp_engine.rollout.base import AdapterSource, WeightSource
from mrsp_engine.rotary import language_section

__all__ = ["SamplerAdapter"]


class SamplerAdapter:
    """The adapter that requests name.

    Args:
        rank: Its rank.
        layers: Names of the layers that have a part of it; vLLM prepares layers of no other name.

    Attributes:
        request: The adapter in vLLM's terms; None before the first update, when the base alone is sampled.
    """

    def __init__(self, rank: int, layers: Iterable[str]) -> None:
        self.rank = rank
        self._layer_ends = sorted({name.rpartition(".")[2] for name in layers})
        self.request: Any = None
        self._num_updates = 0

    def engine_options(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Engine options for vLLM, given the model's config.json.

        Raises:
            EngineUsageError: vLLM has no adapters of this rank, or none for this model on this machine.
        """
        from vllm.config.lora import MaxLoRARanks
        from vllm.platforms import current_platform

        has_experts = "num_experts" in language_section(config)
        if has_experts and current_platform.is_cpu():
            raise EngineUsageError(
                "an adapter for a model with experts: on CPUs vLLM can't run experts beside adapters; let the sampler "
                'take merged weights (sampler.lora_sync = "merged")'
            )
        allowed = sorted(get_args(MaxLoRARanks))
        if not 1 <= self.rank <= allowed[-1]:
            raise EngineUsageError(
                f"an adapter of rank {self.rank}: vLLM takes ranks from 1 to {allowed[-1]}; lower the rank, or let the "
                "sampler take merged weights"
            )
        most = next(rank for rank in allowed if rank >= self.rank)
        return {
            "enable_lora": True,
            "max_lora_rank": most,
            "max_loras": 1,
            "max_cpu_loras": 1,
            "lora_target_modules": self._layer_ends,
        }

    def renew(self, llm: Any, policy: WeightSource) -> int:
        """Give vLLM the policy's adapter in place of the one before; returns its size in bytes.

        Raises:
            EngineError: The policy has none, or vLLM doesn't take it.
        """
        from vllm.lora.request import LoRARequest

        if not isinstance(policy, AdapterSource):
            raise EngineError(f"{type(policy).__name__} has no adapters to give")
        with tempfile.TemporaryDirectory(prefix="longrl-adapter-") as folder:
            policy.save_adapter(Path(folder))
            num_bytes = sum(file.stat().st_size for file in Path(folder).iterdir())
            self._num_updates += 1
            request = LoRARequest(f"update-{self._num_updates}", self._num_updates, folder)
            if not llm.llm_engine.add_lora(request):
                raise EngineError("vLLM refused the adapter")
        if self.request is not None:
            llm.llm_engine.remove_lora(self.request.lora_int_id)
        self.request = request
        return num_bytes
