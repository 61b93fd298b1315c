"""How prompts with stored embeddings are handed to vLLM for VILA.

vLLM has no VILA, and needs none: it runs the language model, and the rows of media stand in the prompt as embeddings.
Text goes as tokens, which vLLM embeds with the weights it was last given. The module imports nothing of vLLM.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import AutoTokenizer

from mrsp_engine.embeddings.reference import MediaReference
from mrsp_engine.families.sampler_media import SamplerMedia
from mrsp_engine.families.vila.config import LANGUAGE_FOLDER
from mrsp_engine.families.vila.policy import MEDIA_TEXTS
from mrsp_engine.prompts import Prompt

__all__ = ["VilaSamplerMedia"]


class VilaSamplerMedia(SamplerMedia):
    """Requests of VILA."""

    options: ClassVar[Mapping[str, Any]] = {"enable_mm_embeds": False, "enable_prompt_embeds": True}
    subfolder = LANGUAGE_FOLDER

    def __init__(self) -> None:
        self._placeholder_ids: frozenset[int] = frozenset()

    def placeholder_ids(self, folder: Path, config: Mapping[str, Any]) -> frozenset[int]:
        """See `SamplerMedia.placeholder_ids`; only the tokenizer knows them."""
        tokenizer: Any = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        self._placeholder_ids = frozenset(tokenizer.convert_tokens_to_ids(text) for text in MEDIA_TEXTS.values())
        return self._placeholder_ids

    def request(self, prompt: Prompt, embeddings: Sequence[Tensor], name: Callable[[MediaReference], str]) -> Any:
        """See `SamplerMedia.request`; vLLM names what it caches of such a prompt by its contents."""
        is_token = [token not in self._placeholder_ids for token in prompt.expanded_ids]
        rows_PD = embeddings[0].new_zeros(prompt.length, embeddings[0].shape[1])
        rows_PD[~torch.tensor(is_token)] = torch.cat(list(embeddings))
        return {
            "prompt_embeds": rows_PD,
            "prompt_token_ids": list(prompt.expanded_ids),
            "prompt_is_token_ids": is_token,
        }
