"""Qwen3.5 with a mixture of experts, of which one, behind a gate, is used for every token.

The experts of a layer are stacked in one tensor each, laid out in files as in transformers' class. The router's
auxiliary load-balancing loss is not part of any objective here.
"""

from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers import Qwen3_5MoeForConditionalGeneration

from longrl_files.messages import visible
from mrsp_engine.embeddings.store import EmbeddingStore
from mrsp_engine.errors import EngineUsageError
from mrsp_engine.families.checkpoint_folder import CheckpointFolder
from mrsp_engine.families.qwen.qwen3_5 import Qwen35Family, Qwen35Policy

_APART = ".language_model.layers.0.mlp.experts.0."


class Qwen35MoePolicy(Qwen35Policy):
    """One Qwen3.5 model with experts, and its processor; see `Policy` for the members."""

    name: ClassVar[str] = "qwen3_5_moe"

    def __init__(self, folder: Path, model: Any, processor: Any, store: EmbeddingStore) -> None:
        if model.dtype == torch.float64:
            model.set_experts_implementation("eager")  # torch's grouped products don't support float64
        super().__init__(folder, model, processor, store)


class Qwen35MoeFamily(Qwen35Family):
    """Loads Qwen3.5 and Qwen3.6 checkpoints with experts."""

    policy_class = Qwen35MoePolicy
    model_class = Qwen3_5MoeForConditionalGeneration

    def refuse_unsupported(self, folder: Path) -> None:
        """See `QwenVlFamily.refuse_unsupported`: also files that name every expert by itself."""
        apart = next((name for name in sorted(CheckpointFolder(folder).matrices()) if _APART in name), None)
        if apart is not None:
            raise EngineUsageError(
                f"{folder}: {visible(apart, 80)}: expected the experts of a layer in one tensor, as published; "
                "set the folder of the published model"
            )
        super().refuse_unsupported(folder)
