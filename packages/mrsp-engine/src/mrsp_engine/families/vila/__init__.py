"""The VILA family (VILA, NVILA, LongVILA): SigLIP, a projector and Qwen2, from the published folder layout."""

from mrsp_engine.families.vila.policy import LlavaLlamaFamily, VilaFamily, VilaPolicy

__all__ = ["LlavaLlamaFamily", "VilaFamily", "VilaPolicy"]
