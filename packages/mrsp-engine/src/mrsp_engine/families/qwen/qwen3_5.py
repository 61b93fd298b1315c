"""Qwen3.5: layers of linear attention (gated delta rule) between layers of softmax attention.

Media are written and placed as by Qwen3-VL, with times as text and interleaved rotary axes, but without DeepStack. The
heads of softmax layers rotate a part of their channels only. What linear layers do with a packed row is in
`mrsp_engine.linear_attention`. Published checkpoints also have layers that predict several tokens at once (`mtp.`);
they are not trained and stay in a saved model as they were.
"""

from pathlib import Path
from typing import Any, ClassVar

from transformers import Qwen3_5ForConditionalGeneration, Qwen3VLProcessor

from mrsp_engine.embeddings.store import EmbeddingStore
from mrsp_engine.errors import EngineUsageError
from mrsp_engine.families.qwen.qwen2_5_vl import QwenVlFamily
from mrsp_engine.families.qwen.qwen3_vl import TimedVideoPolicy
from mrsp_engine.families.qwen.vision import Qwen35VisionEncoder
from mrsp_engine.linear_attention.gated_delta import pack_gated_delta


class Qwen35Policy(TimedVideoPolicy):
    """One Qwen3.5 model with its processor; see `Policy` for the members."""

    name: ClassVar[str] = "qwen3_5"
    encoder_class = Qwen35VisionEncoder

    def __init__(self, folder: Path, model: Any, processor: Any, store: EmbeddingStore) -> None:
        levels = getattr(model.config.vision_config, "deepstack_visual_indexes", None)
        if levels:
            raise EngineUsageError(
                f"{folder}: vision_config has deepstack_visual_indexes={levels}: expected none, models of type "
                f"{self.name} are supported without DeepStack; set another model folder"
            )
        pack_gated_delta(model)
        super().__init__(folder, model, processor, store)


class Qwen35Family(QwenVlFamily):
    """Loads Qwen3.5 and Qwen3.6 checkpoints."""

    policy_class = Qwen35Policy
    model_class = Qwen3_5ForConditionalGeneration
    processor_class = Qwen3VLProcessor
