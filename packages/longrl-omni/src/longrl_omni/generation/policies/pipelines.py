"""What policies of diffusers' pipelines have in common: loading, sizes, and the length of prompts.

Independent of the network of a pipeline and of its latents.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from longrl_files.messages import visible
from longrl_omni.generation.config.recipes import SamplingSection
from longrl_omni.generation.policies.model_files import (
    load_part,
    quiet_libraries,
    read_index,
    refuse_large_parts,
)
from longrl_trainer.errors import TrainerUsageError

TIME_SCALE = 1000.0
"""Of the number that networks know noise levels by."""
MOST_PROMPT_TOKENS = 2**20
TOKENIZERS = ("tokenizer", "tokenizer_2", "tokenizer_3")


def load_pipeline(
    folder: Path, kind: Any, *, dtype: torch.dtype | dict[str, torch.dtype], tokenizers: Sequence[str] = TOKENIZERS
) -> Any:
    """A pipeline from a folder in diffusers' layout, with weights in safetensors; nothing is trained in it yet.

    Args:
        folder: The folder, which is admitted.
        kind: Diffusers' class.
        dtype: Of all weights, or of those of each part.
        tokenizers: Whose own limits the pipeline reads.

    Raises:
        TrainerError: A part is missing, asks for more than its weights, or has no limit for prompts.
    """
    index = read_index(folder)
    refuse_large_parts(folder, index)
    # diffusers takes parts that were saved as absent, such as the largest text encoder, for missing.
    absent = dict.fromkeys(name for name, part in index.items() if part == [None, None])
    with load_part(folder, "the pipeline"):
        pipeline: Any = kind.from_pretrained(folder, dtype=dtype, use_safetensors=True, local_files_only=True, **absent)
    for name in tokenizers:
        tokenizer = getattr(pipeline, name, None)
        # transformers stands a huge number for a length that isn't configured, at which its own code overflows.
        if tokenizer is not None and tokenizer.model_max_length > MOST_PROMPT_TOKENS:
            raise TrainerUsageError(f"`model.folder` = {folder}: {name} has no model_max_length; expected 77 or 512")
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module) and part is not pipeline.transformer:
            part.requires_grad_(False)
    return pipeline


def choose_edges(sampling: SamplingSection, *, default: int, unit: int, most: int | None) -> tuple[int, int]:
    """Height and width of a picture in pixels.

    Args:
        sampling: The recipe's sizes.
        default: Where it sets none.
        unit: Of which they are multiples.
        most: The largest; None for any.

    Raises:
        TrainerUsageError: They aren't.
    """
    height, width = sampling.height or default, sampling.width or default
    for name, size in (("height", height), ("width", width)):
        if size % unit or (most is not None and size > most):
            limit = "" if most is None else f" up to {most}"
            raise TrainerUsageError(f"sampling.{name} = {size}: expected a multiple of {unit}{limit}")
    return height, width


def refuse_long_prompt(prompt: str, tokenizer: Any, *, most: int) -> str | None:
    """Why a prompt can't be asked for: the encoder that reads most would cut it, and diffusers only logs that."""
    with quiet_libraries():
        num_tokens = len(tokenizer(prompt)["input_ids"])
    if num_tokens <= most:
        return None
    start = visible(prompt, 40)
    return f"the prompt {start} has {num_tokens} tokens, expected at most {most}, which the model reads; shorten it"
