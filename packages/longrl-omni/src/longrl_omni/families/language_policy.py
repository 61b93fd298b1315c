"""What all families with a Qwen2 language model and one-dimensional positions share.

The language model runs under the engine's attention (`mrsp_engine.attention`), whatever its embeddings came from. What
media a family takes, and how they are encoded, is the family's own.

Shape legend: P prompt tokens, S row tokens, D hidden size.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from longrl_omni.families.chat_prompts import TURN_START, ChatPrompts, MediaTokens
from mrsp_engine.attention.plan import AttentionPlan
from mrsp_engine.embeddings.store import EmbeddingStore
from mrsp_engine.errors import EngineError, EngineUsageError
from mrsp_engine.families.base import Policy
from mrsp_engine.families.checkpoints import without_progress_bars, write_checkpoint
from mrsp_engine.media import MediaReference
from mrsp_engine.prompts import Prompt
from mrsp_engine.video import Video


class LanguagePolicy(Policy):
    """One model with its tokenizer; see `Policy` for the members.

    Args:
        folder: Where it was loaded from.
        model: The Hugging Face model.
        processor: What is saved beside the model and holds the chat template: a processor, or the tokenizer itself.
        tokenizer: The tokenizer.
        store: Where embeddings are kept.
        media: How media are written, or None.
    """

    def __init__(
        self,
        folder: Path,
        model: Any,
        processor: Any,
        tokenizer: Any,
        store: EmbeddingStore,
        *,
        media: MediaTokens | None = None,
    ) -> None:
        self.folder = folder
        self.model = model
        self.processor = processor
        self.tokenizer = tokenizer
        self.store = store
        self._language_model: Any = model.get_decoder()
        config = self._language_model.config
        if "sliding_attention" in config.layer_types:
            raise EngineUsageError(f"{folder}: sliding-window attention is not supported; set use_sliding_window=false")
        turn_start_id = tokenizer.convert_tokens_to_ids(TURN_START)
        if turn_start_id is None or tokenizer.convert_ids_to_tokens(turn_start_id) != TURN_START:
            raise EngineUsageError(
                f"{folder}: the tokenizer has no {TURN_START}; tokenizer files are missing or of another model, "
                "set another model folder"
            )
        self._layer_masks = dict.fromkeys(config.layer_types)
        self._placeholder_id = None if media is None else media.placeholder_id
        self._prompts = ChatPrompts(processor, tokenizer, media)
        self.vocab_size = int(config.vocab_size)
        ends = model.generation_config.eos_token_id
        ends = tokenizer.eos_token_id if ends is None else ends
        self.end_token_ids = tuple(ends) if isinstance(ends, list | tuple) else (int(ends),)

    def encode_video(self, video: Video, frame_indices: Sequence[int]) -> MediaReference:
        """Refuse: these models don't see."""
        raise EngineUsageError(f"{self.folder}: a model of type {self.name} takes no video; set another model folder")

    def build_prompt(self, text: str, media: Sequence[MediaReference], *, system: str | None = None) -> Prompt:
        """See `Policy.build_prompt`."""
        return self._prompts.build(text, media, system)

    def build_shared_prompt(
        self, media: Sequence[MediaReference], *, system: str | None = None
    ) -> tuple[Prompt, Callable[[str], tuple[int, ...]]]:
        """See `Policy.build_shared_prompt`; without media the cut lies at the opening of the user's turn."""
        return self._prompts.build_shared(media, system)

    def embed(self, prompt: Prompt) -> Tensor:
        """See `Policy.embed`."""
        token_ids = torch.tensor(prompt.expanded_ids, dtype=torch.int64, device=self.device)
        embeddings = self.embed_tokens(token_ids)  # [P, D]
        if not prompt.media:
            return embeddings
        stored = torch.cat([self._stored(medium, embeddings.shape[1]) for medium in prompt.media])
        places = torch.nonzero(token_ids == self._placeholder_id).squeeze(1)
        return embeddings.index_copy(0, places, stored.to(embeddings))

    def embed_tokens(self, token_ids: Tensor) -> Tensor:
        """See `Policy.embed_tokens`."""
        return cast(Tensor, self._language_model.embed_tokens(token_ids))

    def hidden_states(self, embeddings: Tensor, positions: Tensor, plan: AttentionPlan | None = None) -> Tensor:
        """See `Policy.hidden_states`; positions are [1, S]."""
        # An explicit "no mask" per kind of layer keeps transformers from building one from the positions.
        extra = {} if plan is None else {"attention_plan": plan}
        output = self._language_model(
            inputs_embeds=embeddings[None],
            position_ids=positions.to(embeddings.device),
            attention_mask=dict(self._layer_masks),
            use_cache=False,
            **extra,
        )
        return cast(Tensor, output.last_hidden_state)[0]

    @property
    def language_model_head(self) -> nn.Module:
        """See `Policy.language_model_head`."""
        return cast(nn.Module, self.model.lm_head)

    def freeze_vision(self) -> None:
        """See `Policy.freeze_vision`; a model that only reads has no encoder to freeze."""

    def save(self, folder: Path) -> None:
        """See `Policy.save`."""

        def write(temporary: Path) -> None:
            self._save_model(temporary)
            self.processor.save_pretrained(temporary)

        write_checkpoint(folder, write)

    def sampler_weights(self) -> Iterator[tuple[str, Tensor]]:
        """See `Policy.sampler_weights`; a head tied to the input never."""
        is_tied = bool(cast(Any, self.model).config.get_text_config().tie_word_embeddings)
        for name, tensor in self.model.state_dict().items():
            if name != "lm_head.weight" or not is_tied:
                yield name, tensor

    def _save_model(self, folder: Path) -> None:
        cast(Any, self.model).save_pretrained(folder)

    def _stored(self, medium: MediaReference, width: int) -> Tensor:
        tensor = self.store.get(medium.key)
        if tensor is None:
            raise EngineError(
                f"embedding {medium.key[:12]}… is not in the store {self.store.folder}; "
                "encode the file again or set the store folder it was encoded into"
            )
        if tuple(tensor.shape) != (medium.num_tokens, width):
            raise EngineError(
                f"embedding {medium.key[:12]}… has shape {tuple(tensor.shape)}, expected {(medium.num_tokens, width)}; "
                "it was made for another model"
            )
        return tensor


def load_checkpoint(
    folder: Path, model_type: str, *, model_class: Any, processor_class: Any, dtype: torch.dtype, attention: Any
) -> tuple[Any, Any]:
    """Load a model and its processor (or tokenizer), complete or not at all.

    Args:
        folder: The checkpoint.
        model_type: Named in messages.
        model_class: The transformers class of the model.
        processor_class: The transformers class of its processor or tokenizer.
        dtype: Type of the weights.
        attention: `attn_implementation` for transformers, one name or one per part.

    Raises:
        EngineUsageError: The folder is not a complete checkpoint of this type.
    """
    try:
        with without_progress_bars():
            model, report = model_class.from_pretrained(
                str(folder),
                dtype=dtype,
                attn_implementation=attention,
                output_loading_info=True,
                local_files_only=True,
            )
            processor = processor_class.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # transformers raises many kinds for a broken folder
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise EngineUsageError(f"{folder}: can't be loaded as {model_type} ({reason}); set the model folder") from error
    # transformers fills missing weights with random ones and goes on; a checkpoint like that is not usable.
    lacking = [*report["missing_keys"], *report["mismatched_keys"]]
    if lacking:
        raise EngineUsageError(
            f"{folder}: {len(lacking)} weights are missing or of another shape, first {lacking[0]}; "
            "the checkpoint is incomplete, set another model folder"
        )
    return model, processor
