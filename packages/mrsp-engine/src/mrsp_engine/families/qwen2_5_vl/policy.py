"""A loaded Qwen2.5-VL checkpoint: the real transformers classes behind the engine's interface.

The language model runs under the engine's attention (`attention.registration`), the vision tower under ordinary `sdpa`.

Shape legend: P prompt tokens, S row tokens, D hidden size.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor

from mrsp_engine.attention.plan import AttentionPlan
from mrsp_engine.attention.registration import register_attention
from mrsp_engine.embeddings.store import EmbeddingStore
from mrsp_engine.errors import EngineError, EngineUsageError
from mrsp_engine.families.base import Policy
from mrsp_engine.families.checkpoints import without_progress_bars, write_checkpoint
from mrsp_engine.families.qwen2_5_vl.prompts import PromptBuilder
from mrsp_engine.families.qwen2_5_vl.videos import VideoEncoder
from mrsp_engine.media import MediaReference
from mrsp_engine.prompts import Prompt
from mrsp_engine.video import Video

MODEL_TYPE = "qwen2_5_vl"

# Modules by their names in transformers' class, and as the same modules are called in checkpoint files.
_CHECKPOINT_NAMES = (("model.language_model.", "model."), ("model.visual.", "visual."))


class Qwen25VlPolicy(Policy):
    """One Qwen2.5-VL model with its processor; see `Policy` for the members."""

    name: ClassVar[str] = MODEL_TYPE

    def __init__(self, folder: Path, model: Any, processor: Any, store: EmbeddingStore) -> None:
        self.folder = folder
        self.model = model
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self.store = store
        self._language_model: Any = model.model.language_model
        config = model.config
        if "sliding_attention" in config.text_config.layer_types:
            raise EngineUsageError(f"{folder}: sliding-window attention is not supported; set use_sliding_window=false")
        _check_tokenizer(folder, config, self.tokenizer)
        self._layer_masks = dict.fromkeys(config.text_config.layer_types)
        self._encoder = VideoEncoder(model, processor.video_processor, self.name)
        self._prompts = PromptBuilder(
            processor,
            placeholder_id=config.video_token_id,
            media_end_id=config.vision_end_token_id,
            turn_start_id=cast(int, self.tokenizer.convert_tokens_to_ids("<|im_start|>")),
            merge_size=self._encoder.merge_size,
            tokens_per_second=config.vision_config.tokens_per_second,
        )
        self._placeholder_id = int(config.video_token_id)
        self.vocab_size = int(config.text_config.vocab_size)
        ends = model.generation_config.eos_token_id
        ends = self.tokenizer.eos_token_id if ends is None else ends
        self.end_token_ids = tuple(ends) if isinstance(ends, list | tuple) else (int(ends),)

    def encode_video(self, video: Video, frame_indices: Sequence[int]) -> MediaReference:
        """See `Policy.encode_video`. An odd number of frames is completed by repeating the last."""
        return self._encoder.refer(video, frame_indices, self.store)

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
        """See `Policy.hidden_states`; with a plan split over ranks, the row's own tokens only."""
        # An explicit "no mask" per kind of layer keeps transformers from building one from the positions.
        extra = {} if plan is None else {"attention_plan": plan}
        output = self._language_model(
            inputs_embeds=embeddings[None],
            position_ids=positions[:, None].to(embeddings.device),
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
        """See `Policy.freeze_vision`."""
        cast(nn.Module, cast(Any, self.model).model.visual).requires_grad_(False)

    def save(self, folder: Path) -> None:
        """See `Policy.save`."""

        def write(temporary: Path) -> None:
            cast(Any, self.model).save_pretrained(temporary)
            self.processor.save_pretrained(temporary)

        write_checkpoint(folder, write)

    def sampler_weights(self) -> Iterator[tuple[str, Tensor]]:
        """See `Policy.sampler_weights`; the vision tower only if it is being trained, a tied head never."""
        config = cast(Any, self.model).config
        tower: nn.Module = cast(Any, self.model).model.visual
        is_tower_trained = any(parameter.requires_grad for parameter in tower.parameters())
        for name, tensor in self.model.state_dict().items():
            if name.startswith("model.visual.") and not is_tower_trained:
                continue
            if name == "lm_head.weight" and config.tie_word_embeddings:
                continue
            for ours, theirs in _CHECKPOINT_NAMES:
                if name.startswith(ours):
                    name = theirs + name.removeprefix(ours)
                    break
            yield name, tensor

    def _stored(self, medium: MediaReference, width: int) -> Tensor:
        tensor = self.store.get(medium.key)
        if tensor is None:
            raise EngineError(
                f"embedding {medium.key[:12]}… is not in the store {self.store.folder}; "
                "encode the video again or set the store folder it was encoded into"
            )
        if tuple(tensor.shape) != (medium.num_tokens, width):
            raise EngineError(
                f"embedding {medium.key[:12]}… has shape {tuple(tensor.shape)}, expected {(medium.num_tokens, width)}; "
                "it was made for another model"
            )
        return tensor


def _check_tokenizer(folder: Path, config: Any, tokenizer: Any) -> None:
    """Refuse a tokenizer that isn't the model's; transformers makes an empty one where the files are missing."""
    for token, token_id in (("<|video_pad|>", config.video_token_id), ("<|vision_end|>", config.vision_end_token_id)):
        found = tokenizer.convert_tokens_to_ids(token)
        if found != token_id:
            raise EngineUsageError(
                f"{folder}: the tokenizer has {token} as {found}, config.json as {token_id}; "
                "tokenizer files are missing or of another model, set another model folder"
            )


class Qwen25VlFamily:
    """Loads Qwen2.5-VL checkpoints."""

    model_type = MODEL_TYPE

    def load_policy(
        self, folder: Path, *, dtype: torch.dtype, store: EmbeddingStore, device: torch.device
    ) -> Qwen25VlPolicy:
        """See `Family.load_policy`.

        Raises:
            EngineUsageError: The folder is not a complete Qwen2.5-VL checkpoint.
        """
        try:
            with without_progress_bars():
                model, report = cast(
                    tuple[Any, dict[str, Any]],
                    Qwen2_5_VLForConditionalGeneration.from_pretrained(
                        str(folder),
                        dtype=dtype,
                        attn_implementation={"text_config": register_attention(), "vision_config": "sdpa"},
                        output_loading_info=True,
                        local_files_only=True,
                    ),
                )
                processor: Any = Qwen2_5_VLProcessor.from_pretrained(str(folder), local_files_only=True)
        except Exception as error:  # transformers raises many kinds for a broken folder
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise EngineUsageError(
                f"{folder}: can't be loaded as {MODEL_TYPE} ({reason}); set the model folder"
            ) from error
        # transformers fills missing weights with random ones and goes on; a checkpoint like that is not usable.
        lacking = [*report["missing_keys"], *report["mismatched_keys"]]
        if lacking:
            raise EngineUsageError(
                f"{folder}: {len(lacking)} weights are missing or of another shape, first {lacking[0]}; "
                "the checkpoint is incomplete, set another model folder"
            )
        return Qwen25VlPolicy(folder, model.to(device).eval(), processor, store)
