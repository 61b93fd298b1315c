"""Qwen3-VL with a mixture of experts: the feed-forward layers are experts, of which a router selects a few.

The router is trained through the weights that it gives to the selected experts. Its auxiliary load-balancing loss is
not part of any objective here; the published models are used without it too.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Qwen3VLMoeForConditionalGeneration, Qwen3VLProcessor

from mrsp_engine.embeddings.store import EmbeddingStore
from mrsp_engine.families.qwen.qwen2_5_vl import QwenVlFamily
from mrsp_engine.families.qwen.qwen3_vl import Qwen3VlPolicy

EXPERT_WEIGHTS = (".mlp.experts.gate_up_proj", ".mlp.experts.down_proj")


def save_with_experts(model: Any, folder: Path) -> None:
    """Write the model with its experts' matrices laid out as in published checkpoints, which vLLM relies on.

    transformers reads both layouts and writes the one of its own class.
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
            model.set_experts_implementation("eager")  # torch's grouped products don't support float64
        super().__init__(folder, model, processor, store)

    @classmethod
    def lay_out(cls, folder: Path, weights: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        """See `Family.lay_out`; the experts' matrices have the layout of the folder."""
        unturned = _unturned_experts(folder, weights)
        return {
            part: {
                name: tensor.transpose(1, 2) if name.endswith(EXPERT_WEIGHTS) and name not in unturned else tensor
                for name, tensor in held.items()
            }
            for part, held in super().lay_out(folder, weights).items()
        }

    def sampler_weights(self) -> Iterator[tuple[str, Tensor]]:
        """See `Policy.sampler_weights`; the experts of a layer are one tensor with the layout of checkpoints."""
        for name, tensor in super().sampler_weights():
            yield name, tensor.transpose(1, 2) if name.endswith(EXPERT_WEIGHTS) else tensor


class Qwen3VlMoeFamily(QwenVlFamily):
    """Loads Qwen3-VL checkpoints with experts."""

    policy_class = Qwen3VlMoePolicy
    model_class = Qwen3VLMoeForConditionalGeneration
    processor_class = Qwen3VLProcessor


def _unturned_experts(folder: Path, own: Mapping[str, Tensor]) -> set[str]:
    """Names of the experts' weights in a folder that have transformers' own layout, as saved by transformers."""
    found: set[str] = set()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            names = [name for name in file.keys() if name.endswith(EXPERT_WEIGHTS) and name in own]  # noqa: SIM118
            found |= {name for name in names if file.get_slice(name).get_shape() == list(own[name].shape)}
    return found
