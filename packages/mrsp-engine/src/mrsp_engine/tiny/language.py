"""Sizes of the language model in a tiny checkpoint, and the tiny text-only checkpoints.

A language model of a few million random parameters that transformers and vLLM load unchanged; the other tiny
checkpoints add a tower to it.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from mrsp_engine.errors import EngineUsageError
from mrsp_engine.families.checkpoints import require_empty, write_checkpoint
from mrsp_engine.tiny.tokenizer import CHAT_TEMPLATE, END_OF_TEXT, END_OF_TURN, train_tokenizer

__all__ = ["LanguageSizes", "create_tiny_qwen2", "create_tiny_qwen3", "generation_config", "language_settings"]

MINIMUM_HEAD_SIZE = 32  # the minimum for vLLM's attention on CPUs


@dataclass(frozen=True, slots=True, kw_only=True)
class LanguageSizes:
    """Dimensions of a tiny language model.

    Attributes:
        hidden_size: Hidden size.
        num_layers: Number of layers.
        num_heads: Query heads; the head size must be 32 or more.
        num_key_value_heads: Key heads.
        intermediate_size: Width of the feed-forward layers.
        vocabulary_size: Upper bound of the number of tokens, special ones included; a small corpus needs fewer.
        max_position_embeddings: Longest sequence that the configuration allows.
        initializer_range: Standard deviation of the weights.
    """

    hidden_size: int = 192
    num_layers: int = 4
    num_heads: int = 6
    num_key_value_heads: int = 2
    intermediate_size: int = 512
    vocabulary_size: int = 1024
    max_position_embeddings: int = 32768
    initializer_range: float = 0.02

    def __post_init__(self) -> None:
        head_size, rest = divmod(self.hidden_size, self.num_heads)
        if rest or head_size < MINIMUM_HEAD_SIZE or head_size % 8:
            raise EngineUsageError(
                f"hidden_size={self.hidden_size} with num_heads={self.num_heads}: the head size must be a multiple of "
                f"8, at least {MINIMUM_HEAD_SIZE}; change hidden_size or num_heads"
            )
        if self.num_heads % self.num_key_value_heads:
            raise EngineUsageError(
                f"num_key_value_heads={self.num_key_value_heads}: must divide num_heads={self.num_heads}; "
                "change num_key_value_heads"
            )

    @property
    def head_size(self) -> int:
        """Width of one head."""
        return self.hidden_size // self.num_heads


def create_tiny_qwen2(
    folder: Path, *, corpus: Iterable[str], seed: int = 0, sizes: LanguageSizes | None = None
) -> None:
    """Write a complete, randomly initialised Qwen2 checkpoint in the ordinary Hugging Face layout.

    Args:
        folder: The output folder; it must not exist or be empty.
        corpus: Texts on which the tokenizer is trained (prompts and answers like those the model will see).
        seed: Seed of the weights.
        sizes: Dimensions of the model.

    Raises:
        EngineUsageError: The folder isn't empty.
        EngineError: The folder can't be written.
    """
    _create(folder, corpus, seed, sizes or LanguageSizes(), Qwen2Config, Qwen2ForCausalLM)


def create_tiny_qwen3(
    folder: Path, *, corpus: Iterable[str], seed: int = 0, sizes: LanguageSizes | None = None
) -> None:
    """Write a complete, randomly initialised Qwen3 checkpoint; see `create_tiny_qwen2`."""
    sizes = sizes or LanguageSizes()
    _create(folder, corpus, seed, sizes, Qwen3Config, Qwen3ForCausalLM, head_dim=sizes.head_size)


def _create(
    folder: Path,
    corpus: Iterable[str],
    seed: int,
    sizes: LanguageSizes,
    config_class: Any,
    model_class: Any,
    **settings: Any,
) -> None:
    require_empty(folder)
    tokenizer = train_tokenizer(corpus, sizes.vocabulary_size, sizes.max_position_embeddings)
    tokenizer.chat_template = CHAT_TEMPLATE
    config = config_class(**language_settings(sizes, tokenizer), **settings, tie_word_embeddings=True, dtype="float32")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_class(config)
    model.generation_config = generation_config(config)

    def write(temporary: Path) -> None:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)

    write_checkpoint(folder, write)


def language_settings(sizes: LanguageSizes, tokenizer: Any) -> dict[str, Any]:
    """The settings that the configurations of all Qwen language models share."""
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": sizes.hidden_size,
        "intermediate_size": sizes.intermediate_size,
        "num_hidden_layers": sizes.num_layers,
        "num_attention_heads": sizes.num_heads,
        "num_key_value_heads": sizes.num_key_value_heads,
        "max_position_embeddings": sizes.max_position_embeddings,
        "max_window_layers": sizes.num_layers,
        "initializer_range": sizes.initializer_range,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
        "bos_token_id": tokenizer.convert_tokens_to_ids(END_OF_TEXT),
        "eos_token_id": tokenizer.convert_tokens_to_ids(END_OF_TURN),
        "pad_token_id": tokenizer.convert_tokens_to_ids(END_OF_TEXT),
    }


def generation_config(config: Any) -> GenerationConfig:
    """Generation settings for a language model's configuration."""
    return GenerationConfig(
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
        do_sample=True,
    )
