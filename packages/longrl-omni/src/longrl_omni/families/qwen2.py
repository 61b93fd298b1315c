"""Qwen2 and Qwen2.5 language models: the family without media."""

from pathlib import Path
from typing import ClassVar

import torch
from transformers import AutoTokenizer, Qwen2ForCausalLM

from longrl_omni.families.language_policy import LanguagePolicy, load_checkpoint
from mrsp_engine.attention.registration import register_attention
from mrsp_engine.embeddings.store import EmbeddingStore

MODEL_TYPE = "qwen2"


class Qwen2Policy(LanguagePolicy):
    """One Qwen2 or Qwen2.5 model with its tokenizer; see `Policy` for the members."""

    name: ClassVar[str] = MODEL_TYPE


class Qwen2Family:
    """Loads Qwen2 and Qwen2.5 checkpoints."""

    model_type = MODEL_TYPE

    def load_policy(
        self, folder: Path, *, dtype: torch.dtype, store: EmbeddingStore, device: torch.device
    ) -> Qwen2Policy:
        """See `Family.load_policy`.

        Raises:
            EngineUsageError: The folder is not a complete Qwen2 checkpoint.
        """
        model, tokenizer = load_checkpoint(
            folder,
            MODEL_TYPE,
            model_class=Qwen2ForCausalLM,
            processor_class=AutoTokenizer,
            dtype=dtype,
            attention=register_attention(),
        )
        return Qwen2Policy(folder, model.to(device).eval(), tokenizer, tokenizer, store)
