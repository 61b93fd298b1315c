"""Media longer than vLLM expects: an hour of video is one item of 250,000 tokens.

vLLM reserves space for one item of its own processor's maximum length (114,688 tokens for Qwen2.5-VL) or of one batch,
whichever is longer, and refuses longer ones. Stored embeddings have no such limit, so the model is registered again,
out of tree, with a processor that allows an item to fill the whole context. The model itself is unchanged.
"""

import importlib
from collections.abc import Mapping
from functools import cache
from typing import Any

from mrsp_engine.rollout.vllm.thinker import with_trainers_order, with_trainers_positions

__all__ = ["allow_long_media"]

VLLM_MODULES = {
    "Qwen2VL": ("qwen2_vl", "Qwen2VL"),
    "Qwen2_5OmniThinker": ("qwen2_5_omni_thinker", "Qwen2_5OmniThinker"),
    "Qwen2_5_VL": ("qwen2_5_vl", "Qwen2_5_VL"),
    "Qwen3_5": ("qwen3_5", "Qwen3VL"),
    "Qwen3_5Moe": ("qwen3_5", "Qwen3VL"),
    "Qwen3VL": ("qwen3_vl", "Qwen3VL"),
    "Qwen3VLMoe": ("qwen3_vl_moe", "Qwen3VL"),
}
"""By the prefix of the architecture's name, which vLLM's classes share: their module, and the prefixes of the names of
its processor and of its profiling class.
"""

MODEL_SUFFIX = "ForConditionalGeneration"
_THINKER = "Qwen2_5OmniThinker"
_THINKERS = ("Qwen2_5OmniModel", "Qwen2_5OmniForConditionalGeneration")
"""Names of whole models of which vLLM runs the thinker."""


def allow_long_media(architecture: str) -> bool:
    """Allow an item of this architecture to be as long as the context; returns whether the architecture is known."""
    stem = _THINKER if architecture in _THINKERS else architecture.removesuffix(MODEL_SUFFIX)
    if stem not in VLLM_MODULES:
        return False
    from vllm import ModelRegistry

    ModelRegistry.register_model(architecture, _create_model_class(stem))
    return True


@cache
def _create_model_class(stem: str) -> type:
    from vllm.multimodal import MULTIMODAL_REGISTRY
    from vllm.multimodal.processing import BaseProcessingInfo

    module_name, processor_stem = VLLM_MODULES[stem]
    module: Any = importlib.import_module(f"vllm.model_executor.models.{module_name}")
    base_info: type[BaseProcessingInfo] = getattr(module, f"{stem}ProcessingInfo")

    class LongMediaInfo(base_info):
        """The family's own processing with a higher limit on an item."""

        def get_mm_max_tokens_per_item(self, seq_len: int, mm_counts: Mapping[str, int]) -> Mapping[str, int]:
            own = super().get_mm_max_tokens_per_item(seq_len, mm_counts) or {}
            return {modality: max(num_tokens, seq_len) for modality, num_tokens in own.items()}

    base_model, processor = (
        getattr(module, stem + MODEL_SUFFIX),
        getattr(module, f"{processor_stem}MultiModalProcessor"),
    )
    if stem == _THINKER:
        base_model, processor = with_trainers_positions(base_model), with_trainers_order(processor)
    model_class: Any = type(f"LongMedia{stem}", (base_model,), {"__module__": __name__})
    register = MULTIMODAL_REGISTRY.register_processor(
        processor,
        info=LongMediaInfo,
        dummy_inputs=getattr(module, f"{processor_stem}DummyInputsBuilder"),
    )
    return register(model_class)
