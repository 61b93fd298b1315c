"""Qwen2-Audio: a language model that hears, with a frozen audio tower behind the engine's embedding store."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import Qwen2AudioForConditionalGeneration, Qwen2AudioProcessor

from longrl_omni.audio import AudioSource
from longrl_omni.families.audio_encoder import AudioEncoder
from longrl_omni.families.chat_prompts import MediaTokens
from longrl_omni.families.language_policy import LanguagePolicy, load_checkpoint
from mrsp_engine.attention.registration import register_attention
from mrsp_engine.embeddings.store import EmbeddingStore
from mrsp_engine.errors import EngineUsageError
from mrsp_engine.media import MediaReference

MODEL_TYPE = "qwen2_audio"

_ENCODER_PREFIXES = ("model.audio_tower.", "model.multi_modal_projector.")

# Modules by their names in transformers' class, and as the same modules are called in checkpoint files.
_CHECKPOINT_NAMES = (
    ("model.language_model.", "language_model.model."),
    ("lm_head.", "language_model.lm_head."),
    ("model.audio_tower.", "audio_tower."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
)


class Qwen2AudioPolicy(LanguagePolicy):
    """One Qwen2-Audio model with its processor; see `Policy` for the members."""

    name: ClassVar[str] = MODEL_TYPE

    def __init__(self, folder: Path, model: Any, processor: Any, store: EmbeddingStore) -> None:
        tokenizer = processor.tokenizer
        placeholder_id = int(model.config.audio_token_index)
        found = tokenizer.convert_tokens_to_ids(processor.audio_token)
        if found != placeholder_id:
            raise EngineUsageError(
                f"{folder}: the tokenizer has {processor.audio_token} as {found}, config.json as {placeholder_id}; "
                "tokenizer files are missing or of another model, set another model folder"
            )
        end_id = tokenizer.convert_tokens_to_ids(processor.audio_eos_token)
        media = MediaTokens(content_type="audio", placeholder_id=placeholder_id, end_id=end_id)
        super().__init__(folder, model, processor, tokenizer, store, media=media)
        self._encoder = AudioEncoder(model, processor.feature_extractor, self.name)

    @property
    def sample_rate(self) -> int:
        """Samples per second that `encode_audio` takes."""
        return self._encoder.sample_rate

    @property
    def least_samples(self) -> int:
        """Shortest recording that `encode_audio` takes."""
        return self._encoder.least_samples

    def encode_audio(
        self, audio: AudioSource, windows: Sequence[tuple[int, int]] | None = None
    ) -> tuple[MediaReference, ...]:
        """Refer to a recording, encoding only what the store does not hold yet.

        Args:
            audio: The recording, at this checkpoint's sample rate.
            windows: First sample and end of each stretch to hear, ascending, none longer than the tower's window; the
                whole recording in even windows unless given.

        Returns:
            One medium per window, in order.
        """
        windows = self._encoder.plan_windows(audio.num_samples) if windows is None else windows
        return self._encoder.refer(audio, windows, self.store)

    def freeze_vision(self) -> None:
        """See `Policy.freeze_vision`: the audio tower and its projector."""
        self._encoder.parts.requires_grad_(False)

    def sampler_weights(self) -> Iterator[tuple[str, Tensor]]:
        """See `Policy.sampler_weights`; the encoder only if it is being trained."""
        is_encoder_trained = any(parameter.requires_grad for parameter in self._encoder.parts.parameters())
        for name, tensor in super().sampler_weights():
            if name.startswith(_ENCODER_PREFIXES) and not is_encoder_trained:
                continue
            yield checkpoint_name(name), tensor

    def _save_model(self, folder: Path) -> None:
        save_model(self.model, folder)


def checkpoint_name(name: str) -> str:
    """A weight's name in checkpoint files, from its name in transformers' class."""
    ours, theirs = next(pair for pair in _CHECKPOINT_NAMES if name.startswith(pair[0]))
    return theirs + name.removeprefix(ours)


def save_model(model: Any, folder: Path) -> None:
    """Write configuration and weights, the weights under the names of published checkpoints.

    transformers' own renaming when saving is not the inverse of the one when loading: it renames the language model
    twice, and then no other program finds its weights.
    """
    weights = {checkpoint_name(name): tensor for name, tensor in model.state_dict().items()}
    model.save_pretrained(folder, state_dict=weights, save_original_format=False)


class Qwen2AudioFamily:
    """Loads Qwen2-Audio checkpoints."""

    model_type = MODEL_TYPE

    def load_policy(
        self, folder: Path, *, dtype: torch.dtype, store: EmbeddingStore, device: torch.device
    ) -> Qwen2AudioPolicy:
        """See `Family.load_policy`.

        Raises:
            EngineUsageError: The folder is not a complete Qwen2-Audio checkpoint.
        """
        model, processor = load_checkpoint(
            folder,
            MODEL_TYPE,
            model_class=Qwen2AudioForConditionalGeneration,
            processor_class=Qwen2AudioProcessor,
            dtype=dtype,
            attention={"text_config": register_attention(), "audio_config": "sdpa"},
        )
        return Qwen2AudioPolicy(folder, model.to(device).eval(), processor, store)
