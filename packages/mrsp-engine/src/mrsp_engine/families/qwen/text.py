"""Qwen2, Qwen2.5 and Qwen3 language models: the families without media."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import AutoTokenizer, Qwen2ForCausalLM, Qwen3ForCausalLM

from mrsp_engine.attention.registration import register_attention
from mrsp_engine.embeddings.store import EmbeddingStore
from mrsp_engine.families.checkpoints import load_model, load_processor, place
from mrsp_engine.families.language_policy import LanguagePolicy


class Qwen2Policy(LanguagePolicy):
    """One Qwen2 or Qwen2.5 model with its tokenizer; see `Policy` for the members."""

    name: ClassVar[str] = "qwen2"


class Qwen3Policy(LanguagePolicy):
    """One Qwen3 model with its tokenizer; see `Policy` for the members."""

    name: ClassVar[str] = "qwen3"


class _TextFamily:
    """The common part of both; a subclass names its classes."""

    policy_class: ClassVar[type[LanguagePolicy]]
    model_class: ClassVar[Any]

    @property
    def model_type(self) -> str:
        """See `Family.model_type`."""
        return self.policy_class.name

    def load_policy(
        self,
        folder: Path,
        *,
        dtype: torch.dtype,
        store: EmbeddingStore,
        device: torch.device,
        allow_pickle_weights: bool = False,
    ) -> LanguagePolicy:
        """See `Family.load_policy`.

        Raises:
            EngineUsageError: The folder is not a complete checkpoint of this family.
        """
        model = load_model(
            folder,
            self.model_type,
            model_class=self.model_class,
            dtype=dtype,
            attention=register_attention(),
            allow_pickle_weights=allow_pickle_weights,
        )
        tokenizer = load_processor(folder, self.model_type, processor_class=AutoTokenizer)
        return self.policy_class(folder, place(model, device), tokenizer, tokenizer, store)

    def lay_out(self, folder: Path, weights: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        """See `Family.lay_out`."""
        return self.policy_class.lay_out(folder, weights)


class Qwen2Family(_TextFamily):
    """Loads Qwen2 and Qwen2.5 checkpoints."""

    policy_class = Qwen2Policy
    model_class = Qwen2ForCausalLM


class Qwen3Family(_TextFamily):
    """Loads Qwen3 checkpoints."""

    policy_class = Qwen3Policy
    model_class = Qwen3ForCausalLM
