"""Qwen2-VL: like Qwen2.5-VL, but a video's positions count pairs of frames instead of time."""

from typing import Any, ClassVar

from transformers import Qwen2VLForConditionalGeneration, Qwen2VLProcessor

from mrsp_engine.families.qwen.qwen2_5_vl import Qwen25VlPolicy, QwenVlFamily
from mrsp_engine.families.qwen.vision import Qwen2VisionEncoder


class Qwen2VlPolicy(Qwen25VlPolicy):
    """One Qwen2-VL model with its processor; see `Policy` for the members."""

    name: ClassVar[str] = "qwen2_vl"
    encoder_class = Qwen2VisionEncoder

    @staticmethod
    def tokens_per_second(vision_config: Any) -> float:
        """A pair of frames takes one position, whatever its time; the encoder reports a duration of one second."""
        return 1.0


class Qwen2VlFamily(QwenVlFamily):
    """Loads Qwen2-VL checkpoints."""

    policy_class = Qwen2VlPolicy
    model_class = Qwen2VLForConditionalGeneration
    processor_class = Qwen2VLProcessor
