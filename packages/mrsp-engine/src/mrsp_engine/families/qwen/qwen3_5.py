"""Qwen3.5: layers of linear attention (gated delta rule) between layers of softmax attention.

Media are written and placed as by Qwen3-VL, with times as text and interleaved rotary axes, but without DeepStack. The
heads of softmax layers rotate a part of their channels only. What linear layers do with a packed row is in
`mrsp_engine.linear_attention`. Published checkpoints also have layers that predict several tokens at once (`mtp.`);
they are not trained and stay in a saved model as they were.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from transformers import Qwen3_5ForConditionalGeneration, Qwen3VLProcessor

from longrl_files.messages import visible
from mrsp_engine.embeddings.store import EmbeddingStore
from mrsp_engine.errors import EngineUsageError
from mrsp_engine.families.checkpoint_folder import CheckpointFolder
from mrsp_engine.families.qwen.qwen2_5_vl import QwenVlFamily
from mrsp_engine.families.qwen.qwen3_vl import TimedVideoPolicy
from mrsp_engine.families.qwen.vision import Qwen35VisionEncoder
from mrsp_engine.linear_attention.gated_delta import pack_gated_delta

_LAYER_KINDS = {"linear_attention", "full_attention"}


class Qwen35Policy(TimedVideoPolicy):
    """One Qwen3.5 model with its processor; see `Policy` for the members."""

    name: ClassVar[str] = "qwen3_5"
    encoder_class = Qwen35VisionEncoder

    def __init__(self, folder: Path, model: Any, processor: Any, store: EmbeddingStore) -> None:
        pack_gated_delta(model)
        super().__init__(folder, model, processor, store)


class Qwen35Family(QwenVlFamily):
    """Loads Qwen3.5 and Qwen3.6 checkpoints."""

    policy_class = Qwen35Policy
    model_class = Qwen3_5ForConditionalGeneration
    processor_class = Qwen3VLProcessor

    def refuse_unsupported(self, folder: Path) -> None:
        """See `QwenVlFamily.refuse_unsupported`: unknown kinds of layers, and settings that are ignored."""
        _refuse_unsupported(folder / "config.json", CheckpointFolder(folder).read("config.json"))


def _refuse_unsupported(path: Path, config: Mapping[str, Any]) -> None:
    """Refuse settings that transformers' class ignores, or finds wrong only while it computes."""
    text: Mapping[str, Any] = config.get("text_config") or {}
    levels = (config.get("vision_config") or {}).get("deepstack_visual_indexes")
    if levels:
        raise EngineUsageError(
            f"{path}: deepstack_visual_indexes={visible(repr(levels), 60)}: expected none, this type of model is "
            "supported without DeepStack only; set another model folder"
        )
    if text.get("attn_output_gate") is False:
        raise EngineUsageError(
            f"{path}: attn_output_gate=false: expected attention with a gate; set another model folder"
        )
    kinds: list[str] | None = text.get("layer_types")
    if kinds is not None and (len(kinds) != text.get("num_hidden_layers") or not set(kinds) <= _LAYER_KINDS):
        raise EngineUsageError(
            f"{path}: layer_types={visible(repr(kinds), 60)}: expected one of {', '.join(sorted(_LAYER_KINDS))} for "
            f"each of {text.get('num_hidden_layers')} layers; set another model folder"
        )
    values, keys = (text.get(f"linear_num_{kind}_heads") or default for kind, default in (("value", 32), ("key", 16)))
    if values % keys:
        raise EngineUsageError(
            f"{path}: linear_num_value_heads={values}: expected a multiple of linear_num_key_heads={keys}; set another "
            "model folder"
        )
