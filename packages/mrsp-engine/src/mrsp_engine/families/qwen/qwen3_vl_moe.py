"""Qwen3-VL with a mixture of experts: Qwen3-VL whose feed-forward layers are experts, of which a router picks a few.

The router is trained through the weights that it gives to the experts it picked. Its auxiliary loss, which evens out
how often experts are picked, is not part of any objective here; the published models are used without it too.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Qwen3VLMoeForConditionalGeneration, Qwen3VLProcessor

from mrsp_engine.embeddings.store import EmbeddingStore
from mrsp_engine.families.qwen.qwen2_5_vl import QwenVlFamily
from mrsp_engine.families.qwen.qwen3_vl import Qwen3VlPolicy

EXPERT_WEIGHTS = (".mlp.experts.gate_up_proj", ".mlp.experts.down_proj")


def save_with_experts(model: Any, folder: Path) -> None:
    """Write the model with its experts' matrices as they lie in published checkpoints, which vLLM relies on.

    transformers reads both ways round and writes the way of its own class.
    """
    model.save_pretrained(folder)
    own = model.state_dict()
    for path in sorted(folder.glob("*.safetensors")):
        weights = load_file(path)
        turned = {
            name: tensor.transpose(1, 2).contiguous()
            for name, tensor in weights.items()
            if name.endswith(EXPERT_WEIGHTS) and tensor.shape == own[name].shape
        }
        if turned:
            save_file(weights | turned, path, metadata={"format": "pt"})


class Qwen3VlMoePolicy(Qwen3VlPolicy):
    """One Qwen3-VL model with experts, and its processor; see `Policy` for the members."""

    name: ClassVar[str] = "qwen3_vl_moe"

    def __init__(self, folder: Path, model: Any, processor: Any, store: EmbeddingStore) -> None:
        if model.dtype == torch.float64:
            model.set_experts_implementation("eager")  # torch's grouped products know no float64
        super().__init__(folder, model, processor, store)

    def sampler_weights(self) -> Iterator[tuple[str, Tensor]]:
        """See `Policy.sampler_weights`; the experts of a layer are one tensor whose matrices lie as in checkpoints."""
        for name, tensor in super().sampler_weights():
            yield name, tensor.transpose(1, 2) if name.endswith(EXPERT_WEIGHTS) else tensor

    def _save_model(self, folder: Path) -> None:
        save_with_experts(self.model, folder)


class Qwen3VlMoeFamily(QwenVlFamily):
    """Loads Qwen3-VL checkpoints with experts."""

    policy_class = Qwen3VlMoePolicy
    model_class = Qwen3VLMoeForConditionalGeneration
    processor_class = Qwen3VLProcessor
