"""vLLM's requests for prompts, and the responses in its outputs.

vLLM validates little of these inputs; bad ones fail inside the model or, worse, don't fail. So a prompt is checked
before it is submitted, and one that can't be sampled is refused without affecting the others. The module doesn't run
vLLM.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from mrsp_engine.embeddings.reference import MediaReference
from mrsp_engine.errors import EngineUsageError
from mrsp_engine.families.checkpoint_folder import CheckpointFolder
from mrsp_engine.families.sampler_media import SamplerMedia, StoredSamplerMedia, find_sampler_media
from mrsp_engine.positions import FILM_SOUND
from mrsp_engine.prompts import Prompt
from mrsp_engine.rollout.base import EmbeddingSource, Refusal, RefusalReason, Rollout, SamplingSettings
from mrsp_engine.rollout.vllm.embedding_connector import medium_name
from mrsp_engine.rotary import language_section

__all__ = ["RequestWriter", "SamplerCheckpoint", "read_rollouts"]


class SamplerCheckpoint:
    """What the sampler needs to know about a checkpoint.

    Attributes:
        folder: Folder of the model that vLLM runs.
        config: Its config.json.
        architecture: The model class named in it.
        hidden_size: Width of the language model.
        media: How its media are written into requests.
        embedding_width: Width of a medium's embedding.
        placeholder_ids: Tokens that represent media.
        end_token_ids: Tokens that end a response.

    Raises:
        EngineUsageError: The folder isn't a checkpoint, or specifies no end token.
    """

    def __init__(self, folder: Path) -> None:
        config = _read_config(folder)
        self.media: SamplerMedia = find_sampler_media(str(config.get("model_type")))
        if self.media.subfolder:
            folder = CheckpointFolder(folder).part(self.media.subfolder).path
            config = _read_config(folder)
        checkpoint = CheckpointFolder(folder)
        checkpoint.admit(allow_pickle_weights=True)
        self.folder, self.config = folder, config
        text_config = language_section(config)
        if "hidden_size" not in text_config:
            raise EngineUsageError(f"{folder / 'config.json'}: has no hidden_size; choose a language model's folder")
        self.architecture = str(next(iter(config.get("architectures") or ()), ""))
        self.hidden_size = int(text_config["hidden_size"])
        self.embedding_width = self.media.embedding_width(config)
        self.placeholder_ids = self.media.placeholder_ids(folder, config)
        generation = checkpoint.find("generation_config.json") or {}
        thinker = cast(Mapping[str, Any], config.get("thinker_config") or {})
        named = (values.get("eos_token_id") for values in (generation, text_config, thinker))
        end = cast(int | list[int] | None, next((ids for ids in named if ids is not None), None))
        if end is None:
            raise EngineUsageError(
                f"{folder / 'generation_config.json'}: specifies no end token; set eos_token_id there"
            )
        self.end_token_ids = (end,) if isinstance(end, int) else tuple(end)
        if not checkpoint.weight_files():
            raise EngineUsageError(
                f"{folder}: has no weights as safetensors, and vLLM is given nothing else; train from it, which saves "
                'safetensors, or set the sampler\'s engine to "transformers"'
            )


class RequestWriter:
    """Turns prompts into vLLM's requests.

    Args:
        checkpoint: The checkpoint that the prompts were built for.
        source: Holds the embeddings that they refer to.
        max_model_len: Maximum length of a prompt with its response, in tokens.
        max_positions: Maximum number of positions of both.
        dtype: Dtype of the sampler.
        is_reading_store: Whether vLLM reads embeddings from the store by name, rather than from the request.
    """

    def __init__(
        self,
        checkpoint: SamplerCheckpoint,
        source: EmbeddingSource,
        *,
        max_model_len: int,
        max_positions: int,
        dtype: torch.dtype,
        is_reading_store: bool,
    ) -> None:
        self._checkpoint = checkpoint
        self._source = source
        self._max_model_len, self._max_positions = max_model_len, max_positions
        self._dtype = dtype
        self._is_reading_store = is_reading_store
        self._checked: set[MediaReference] = set()

    def write(self, prompt: Prompt, sampling: SamplingSettings) -> dict[str, Any] | Refusal:
        """The request for one prompt, or a refusal.

        Raises:
            EngineUsageError: The prompt was built for another checkpoint.
        """
        checkpoint = self._checkpoint
        num_written = sum(medium.modality != FILM_SOUND for medium in prompt.media)  # a film's sound is inside of it
        if sum(token in checkpoint.placeholder_ids for token in prompt.token_ids) != num_written:
            raise EngineUsageError(
                f"prompt with {num_written} media: expected as many placeholder tokens "
                f"({sorted(checkpoint.placeholder_ids)}) in token_ids; build the prompt with this checkpoint's policy"
            )
        if prompt.length + sampling.max_tokens > self._max_model_len:
            return Refusal(
                reason=RefusalReason.PROMPT_TOO_LONG,
                message=f"prompt of {prompt.length} tokens and max_tokens={sampling.max_tokens}: expected at most "
                f"{self._max_model_len} together; raise max_model_len, or lower max_tokens or the number of frames",
            )
        positions = int(prompt.positions.max()) + 1
        if positions + sampling.max_tokens > self._max_positions:
            return Refusal(
                reason=RefusalReason.PROMPT_TOO_LONG,
                message=f"prompt of {positions} positions and max_tokens={sampling.max_tokens}: expected at most "
                f"{self._max_positions} together, which the model was trained for; take shorter videos or fewer frames",
            )
        if not prompt.media:
            return {"prompt_token_ids": list(prompt.token_ids)}
        embeddings: list[Tensor] = []
        for medium in prompt.media:
            found = self._find(medium)
            if isinstance(found, Refusal):
                return found
            embeddings.append(found)
        media = checkpoint.media
        if self._is_reading_store and isinstance(media, StoredSamplerMedia):
            return media.reference_request(prompt, medium_name)
        return media.request(prompt, [embedding.to(self._dtype) for embedding in embeddings], medium_name)

    def _find(self, medium: MediaReference) -> Tensor | Refusal:
        tensor = self._source.get(medium.key)
        expected = (medium.num_tokens, self._checkpoint.embedding_width)
        if tensor is None:
            fault = f"isn't in {self._source.folder}; encode it with the store of this engine"
        elif medium in self._checked:
            return tensor
        elif tuple(tensor.shape) != expected:
            fault = f"has shape {tuple(tensor.shape)}, expected {expected}; encode it with this engine's checkpoint"
        elif not bool(torch.isfinite(tensor).all()):
            fault = "holds numbers that aren't finite; check the encoder's dtype"
        else:
            self._checked.add(medium)
            return tensor
        return Refusal(reason=RefusalReason.EMBEDDING_UNUSABLE, message=f"embedding {medium.key} {fault}")


def read_rollouts(output: Any, tokenizer: Any) -> list[Rollout] | Refusal:
    """The responses in one of vLLM's outputs."""
    completions = sorted(output.outputs, key=lambda completion: completion.index)
    given_up = [completion.finish_reason for completion in completions if completion.finish_reason not in _ENDS]
    if given_up or not completions:
        return Refusal(
            reason=RefusalReason.SAMPLER_GAVE_UP,
            message=f"vLLM failed on a prompt of {len(output.prompt_token_ids or ())} tokens "
            f"({given_up[0] if given_up else 'no response'}); its embedding may have been deleted from the store "
            f"meanwhile",
        )
    token_ids = [tuple(completion.token_ids) for completion in completions]
    texts: list[str] = tokenizer.batch_decode([list(ids) for ids in token_ids], skip_special_tokens=True)
    return [
        Rollout(
            token_ids=ids,
            logprobs=tuple(
                float(candidates[token].logprob) for token, candidates in zip(ids, completion.logprobs, strict=True)
            ),
            text=text,
            finished=completion.finish_reason == "stop",
        )
        for completion, ids, text in zip(completions, token_ids, texts, strict=True)
    ]


_ENDS = ("stop", "length")


def _read_config(folder: Path) -> dict[str, Any]:
    config = CheckpointFolder(folder).find("config.json") if folder.exists() else None
    if config is None or "model_type" not in config:
        raise EngineUsageError(
            f"{folder / 'config.json'}: not readable as a model's configuration; choose a checkpoint folder"
        )
    return config
