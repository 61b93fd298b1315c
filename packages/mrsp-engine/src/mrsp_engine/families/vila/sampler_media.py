"""How prompts with stored embeddings are passed to vLLM for VILA.

vLLM doesn't support VILA, and needn't: it runs the language model, and the rows of media are in the prompt as
embeddings. Text is passed as tokens, which vLLM embeds with its latest weights. The module imports nothing from vLLM.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from mrsp_engine.embeddings.reference import MediaReference
from mrsp_engine.families.sampler_media import SamplerMedia
from mrsp_engine.families.vila.config import LANGUAGE_FOLDER
from mrsp_engine.families.vila.policy import MEDIA_TEXTS, load_tokenizer
from mrsp_engine.prompts import Prompt

__all__ = ["VilaSamplerMedia"]


class VilaSamplerMedia(SamplerMedia):
    """Requests of VILA."""

    options: ClassVar[Mapping[str, Any]] = {"enable_mm_embeds": False, "enable_prompt_embeds": True}
    subfolder = LANGUAGE_FOLDER

    def __init__(self) -> None:
        self._placeholder_ids: frozenset[int] = frozenset()

    def placeholder_ids(self, folder: Path, config: Mapping[str, Any]) -> frozenset[int]:
        """See `SamplerMedia.placeholder_ids`; only the tokenizer has them."""
        tokenizer = load_tokenizer(folder, "vila")
        self._placeholder_ids = frozenset(tokenizer.convert_tokens_to_ids(text) for text in MEDIA_TEXTS.values())
        return self._placeholder_ids

    def request(self, prompt: Prompt, embeddings: Sequence[Tensor], name: Callable[[MediaReference], str]) -> Any:
        """See `SamplerMedia.request`; vLLM's cache keys for such a prompt come from its contents."""
        is_token = [token not in self._placeholder_ids for token in prompt.expanded_ids]
        rows_PD = embeddings[0].new_zeros(prompt.length, embeddings[0].shape[1])
        rows_PD[~torch.tensor(is_token)] = torch.cat(list(embeddings))
        return {
            "prompt_embeds": rows_PD,
            # Ids of media tokens may be unknown to the model, and vLLM would refuse them.
            "prompt_token_ids": [
                token if is_text else 0 for token, is_text in zip(prompt.expanded_ids, is_token, strict=True)
            ],
            "prompt_is_token_ids": is_token,
        }
