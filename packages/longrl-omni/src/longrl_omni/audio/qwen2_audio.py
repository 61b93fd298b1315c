"""Qwen2-Audio: a language model for audio, with a frozen audio tower whose output is kept in the embedding store."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import Qwen2AudioForConditionalGeneration, Qwen2AudioProcessor

from longrl_omni.audio.encoder import Qwen2AudioEncoder
from mrsp_engine.attention.registration import register_attention
from mrsp_engine.embeddings.reference import MediaReference
from mrsp_engine.embeddings.store import EmbeddingStore
from mrsp_engine.encoding.audio import AudioSource
from mrsp_engine.families.chat_prompts import check_token
from mrsp_engine.families.checkpoints import load_model, load_processor, place
from mrsp_engine.families.language_policy import LanguagePolicy
from mrsp_engine.prompts import MediaTokens

MODEL_TYPE = "qwen2_audio"


class Qwen2AudioPolicy(LanguagePolicy):
    """One Qwen2-Audio model with its processor; see `Policy` for the members."""

    name: ClassVar[str] = MODEL_TYPE
    checkpoint_names = (
        ("model.language_model.", "language_model.model."),
        ("lm_head.", "language_model.lm_head."),
        ("model.audio_tower.", "audio_tower."),
        ("model.multi_modal_projector.", "multi_modal_projector."),
    )
    encoder_prefixes = ("model.audio_tower.", "model.multi_modal_projector.")

    def __init__(self, folder: Path, model: Any, processor: Any, store: EmbeddingStore) -> None:
        tokenizer = processor.tokenizer
        written = (
            check_token(folder, tokenizer, processor.audio_bos_token),
            check_token(folder, tokenizer, processor.audio_token, int(model.config.audio_token_index)),
            check_token(folder, tokenizer, processor.audio_eos_token),
        )
        media = MediaTokens(part={"type": "audio"}, written=written, placeholder_id=written[1])
        super().__init__(folder, model, processor, tokenizer, store, media={"audio": media})
        self._audio_encoder = Qwen2AudioEncoder(model, processor.feature_extractor, self.name)

    @property
    def sample_rate(self) -> int:
        """Samples per second that `encode_audio` expects."""
        return self._audio_encoder.sample_rate

    @property
    def least_samples(self) -> int:
        """Minimum number of samples for `encode_audio`."""
        return self._audio_encoder.least_samples

    def encode_audio(
        self, audio: AudioSource, windows: Sequence[tuple[int, int]] | None = None
    ) -> tuple[MediaReference, ...]:
        """Return references to a recording, encoding only what the store does not hold yet.

        Args:
            audio: The recording, at this checkpoint's sample rate.
            windows: First sample and end of each window, ascending, none longer than the tower's window; by default the
                whole recording in even windows.

        Returns:
            One medium per window, in order.
        """
        windows = self._audio_encoder.plan_windows(audio.num_samples) if windows is None else windows
        return self._audio_encoder.refer(audio, windows, self.store)

    def freeze_vision(self) -> None:
        """See `Policy.freeze_vision`: the audio tower and its projector."""
        self._audio_encoder.parts.requires_grad_(False)


def save_model(model: Any, folder: Path) -> None:
    """Write configuration and weights, with the weight names of published checkpoints.

    transformers' renaming when saving is not the inverse of that when loading: it renames the language model twice, so
    that no other program finds its weights.
    """
    weights = {Qwen2AudioPolicy.checkpoint_name(name): tensor for name, tensor in model.state_dict().items()}
    model.save_pretrained(folder, state_dict=weights, save_original_format=False)


class Qwen2AudioFamily:
    """Loads Qwen2-Audio checkpoints."""

    model_type = MODEL_TYPE

    def load_policy(
        self,
        folder: Path,
        *,
        dtype: torch.dtype,
        store: EmbeddingStore,
        device: torch.device,
        allow_pickle_weights: bool = False,
    ) -> Qwen2AudioPolicy:
        """See `Family.load_policy`.

        Raises:
            EngineUsageError: The folder is not a complete Qwen2-Audio checkpoint.
        """
        attention = {"text_config": register_attention(), "audio_config": "sdpa"}
        model = load_model(
            folder,
            MODEL_TYPE,
            model_class=Qwen2AudioForConditionalGeneration,
            dtype=dtype,
            attention=attention,
            allow_pickle_weights=allow_pickle_weights,
        )
        processor = load_processor(folder, MODEL_TYPE, processor_class=Qwen2AudioProcessor)
        return Qwen2AudioPolicy(folder, place(model, device), processor, store)

    def lay_out(self, folder: Path, weights: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        """See `Family.lay_out`."""
        return Qwen2AudioPolicy.lay_out(folder, weights)
