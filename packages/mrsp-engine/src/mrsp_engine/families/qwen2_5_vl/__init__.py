"""The Qwen2.5-VL family: loading, videos, prompts and the policy that joins them."""

from mrsp_engine.families.qwen2_5_vl.policy import Qwen25VlFamily, Qwen25VlPolicy

__all__ = ["Qwen25VlFamily", "Qwen25VlPolicy"]
