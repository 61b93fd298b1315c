"""Qwen2.5-Omni: the thinker, which sees and hears and writes text.

A checkpoint also has a talker and a vocoder (`talker.`, `token2wav.`), which turn the thinker's text into speech. They
are neither loaded nor trained, and stay in a saved model as they were, as do the voices beside them (`spk_dict.pt`).

Vision tower and language model are Qwen2.5-VL's, with other names for the markers of media. Frames have the size that
the checkpoint's video processor gives them; transformers' `Qwen2_5OmniProcessor` replaces that by 128 to 768 merged
patches in every call, and cuts sound after the window of its feature extractor.

A film that is heard is one medium to the template, and two here: its video, and right behind it its sound
(`FILM_SOUND`), whose modality is the only flag for prompt, positions and sampler. Transformers and vLLM 0.32 disagree
about such a film, and this is what trainer and sampler do:

- Positions are transformers'. That code is of the model's authors, so it is what the published weights were trained
  with as far as anybody can tell: the two markers before a film share a position, and the two behind it. vLLM once
  agreed, having taken transformers as the truth, and no longer did when its function was written anew.
- The order is the one of the technical report (arXiv 2503.20215): chunks of two seconds of actual time, pictures before
  sound. Transformers' processor gives the same wherever a group of frames lasts at most a chunk. For
  fewer frames it moves on by one chunk per row, and so tears a group's rows apart, with sound of other times between
  them; vLLM has the report's order there, and positions that don't fit to it.

A group of frames has the position of the beginning of the interval that it stands for, as with frames from time 0 on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import Tensor
from transformers import Qwen2_5OmniProcessor, Qwen2_5OmniThinkerForConditionalGeneration

from mrsp_engine.embeddings.reference import MediaReference
from mrsp_engine.embeddings.store import EmbeddingStore
from mrsp_engine.encoding.audio import AudioSource
from mrsp_engine.encoding.audio_encoder import AudioEncoder
from mrsp_engine.errors import EngineUsageError
from mrsp_engine.families.chat_prompts import check_token
from mrsp_engine.families.checkpoint_folder import CheckpointFolder
from mrsp_engine.families.language_policy import LanguagePolicy
from mrsp_engine.families.qwen.qwen2_5_vl import QwenVlFamily
from mrsp_engine.families.qwen.vision import ThinkerVisionEncoder
from mrsp_engine.positions import (
    FILM_SOUND,
    ThinkerClock,
    film_runs,
    qwen2_5_omni_extent,
    qwen2_5_omni_positions,
)
from mrsp_engine.prompts import Companion, MediaTokens, PositionRule

__all__ = ["Qwen25OmniFamily", "Qwen25OmniPolicy"]

_MARKERS = (
    *(f"{medium}_token" for medium in ("image", "video", "audio")),
    *(f"{sense}_{end}_token" for sense in ("vision", "audio") for end in ("bos", "eos")),
)
"""Settings by which the processor finds the tokens of media."""


class Qwen25OmniPolicy(LanguagePolicy):
    """The thinker of one Qwen2.5-Omni model with its processor; see `Policy` for the members."""

    name: ClassVar[str] = "qwen2_5_omni"
    has_one_axis = False
    checkpoint_names = tuple((part, f"thinker.{part}") for part in ("model.", "lm_head.", "visual.", "audio_tower."))
    encoder_prefixes = ("visual.", "audio_tower.")

    def __init__(self, folder: Path, model: Any, processor: Any, store: EmbeddingStore) -> None:
        config = model.config
        self._audio_encoder = ThinkerAudioEncoder(model, processor.feature_extractor, self.name)
        self._audio_encoder.parts.requires_grad_(False)
        encoder = ThinkerVisionEncoder(model, processor, self.name)
        clock = ThinkerClock(
            merge_size=encoder.merge_size,
            places_per_second=float(config.position_id_per_seconds),
            places_per_chunk=int(config.position_id_per_seconds * config.seconds_per_chunk),
        )
        media = _media_tokens(folder, config, processor, clock)
        placeholder_ids = frozenset(tokens.placeholder_id for tokens in media.values())

        def place(expanded_ids: Sequence[int], media: Sequence[MediaReference]) -> Tensor:
            _refuse_mixture(media)
            return qwen2_5_omni_positions(expanded_ids, media, placeholder_ids=placeholder_ids, clock=clock)

        super().__init__(
            folder,
            model,
            processor,
            processor.tokenizer,
            store,
            media=media,
            positions=PositionRule(place=place, extent=partial(qwen2_5_omni_extent, clock=clock)),
            encoder=encoder,
        )

    @property
    def sample_rate(self) -> int:
        """Samples per second that `encode_audio` expects."""
        return self._audio_encoder.sample_rate

    @property
    def least_samples(self) -> int:
        """Minimum number of samples for `encode_audio`."""
        return self._audio_encoder.least_samples

    def encode_audio(self, audio: AudioSource) -> tuple[MediaReference, ...]:
        """Return a reference to a whole recording, encoding it only if the store does not hold it yet.

        Raises:
            EngineUsageError: The recording has another sample rate.
            UnfitMediumError: It is too short for the tower.
        """
        return self._audio_encoder.refer(audio, [(0, audio.num_samples)], self.store)

    def encode_film_sound(self, audio: AudioSource) -> MediaReference:
        """Return a reference to the sound of a film, which is given to a prompt right after the film's video.

        Sample 0 has the film's time 0: the beginning of the interval for which the first group of frames stands. The
        sound's rows are those of the same file as a recording, and stored once.

        Raises:
            EngineUsageError: The sound has another sample rate.
            UnfitMediumError: It is too short for the tower.
        """
        (sound,) = self._audio_encoder.refer(audio, [(0, audio.num_samples)], self.store, modality=FILM_SOUND)
        return sound


class ThinkerAudioEncoder(AudioEncoder):
    """Encodes with the thinker's audio tower, whose attention ends after every two seconds.

    A recording is one medium, however long it is: 25 rows a second.

    Args:
        model: The Hugging Face model.
        feature_extractor: The checkpoint's feature extractor.
        family: Name used in the key.
    """

    joins_windows = True

    def __init__(self, model: Any, feature_extractor: Any, family: str) -> None:
        self._tower = model.audio_tower
        block = 2 * int(self._tower.n_window) * int(feature_extractor.hop_length)
        super().__init__(self._tower, feature_extractor, f"{family} audio", samples_per_block=block)

    def encode_features(self, features: Tensor, mel_frames: int) -> Tensor:
        """See `AudioEncoder.encode_features`; the tower takes the recording's own frames, without padding."""
        lengths = torch.tensor([mel_frames], device=features.device)
        output = self._tower(features[0, :, :mel_frames], feature_lens=lengths)
        return cast(Tensor, output.last_hidden_state)


class Qwen25OmniFamily(QwenVlFamily):
    """Loads the thinker of Qwen2.5-Omni checkpoints."""

    policy_class = Qwen25OmniPolicy
    model_class = Qwen2_5OmniThinkerForConditionalGeneration
    processor_class = Qwen2_5OmniProcessor
    tower_sections = ("vision_config", "audio_config")

    def refuse_unsupported(self, folder: Path) -> None:
        """See `QwenVlFamily.refuse_unsupported`: other layouts and tokenizers, and two clocks that differ."""
        checkpoint = CheckpointFolder(folder)
        path, config = folder / "config.json", checkpoint.read("config.json")
        if not isinstance(config.get("thinker_config"), dict):
            raise EngineUsageError(
                f"{path}: has no thinker_config; expected the configuration of a whole Qwen2.5-Omni, set another model "
                "folder"
            )
        thinker = cast(Mapping[str, Any], config["thinker_config"])
        clock = thinker.get("position_id_per_seconds", 25)
        sampled = (thinker.get("vision_config") or {}).get("tokens_per_second", 25)
        if clock != sampled:
            raise EngineUsageError(
                f"{path}: position_id_per_seconds={clock} and tokens_per_second={sampled} in vision_config: a trainer "
                "reads the first and a sampler the second; expected the same number"
            )
        named = checkpoint.find("tokenizer_config.json") or {}
        extra = named.get("extra_special_tokens")
        lacking = next(
            (name for name in _MARKERS if name not in {**named, **(extra if isinstance(extra, dict) else {})}), None
        )
        if lacking is not None:
            raise EngineUsageError(
                f"{folder / 'tokenizer_config.json'}: names no {lacking}; the tokenizer is missing or of another "
                "model, set another model folder"
            )


def _refuse_mixture(media: Sequence[MediaReference]) -> None:
    """Refuse what no program for this model has a way to write.

    Raises:
        EngineUsageError: One film is heard, and another isn't or a recording is given besides.
    """
    kinds = [medium.modality for medium in media]
    if FILM_SOUND in kinds and (kinds.count("video") != kinds.count(FILM_SOUND) or "audio" in kinds):
        raise EngineUsageError(
            f"{kinds.count('video')} videos, {kinds.count(FILM_SOUND)} of them heard, and {kinds.count('audio')} "
            "recordings in one prompt: Qwen2.5-Omni hears all of a prompt's films or none, and no recordings beside "
            "heard films; ask about them one by one"
        )


def _media_tokens(folder: Path, config: Any, processor: Any, clock: ThinkerClock) -> dict[str, MediaTokens]:
    """How media are written: a placeholder between two markers, and a heard film between two pairs of markers.

    Raises:
        EngineUsageError: The tokenizer isn't the model's.
    """

    def check(token: str, setting: str) -> int:
        return check_token(folder, processor.tokenizer, token, int(getattr(config, setting)))

    seen = (
        check(processor.vision_bos_token, "vision_start_token_id"),
        check(processor.vision_eos_token, "vision_end_token_id"),
    )
    heard = (
        check(processor.audio_bos_token, "audio_start_token_id"),
        check(processor.audio_eos_token, "audio_end_token_id"),
    )
    placeholders = {
        "video": check(processor.video_token, "video_token_id"),
        "image": check(processor.image_token, "image_token_id"),
        "audio": check(processor.audio_token, "audio_token_id"),
    }
    media = {
        modality: MediaTokens(part={"type": modality}, written=(start, placeholder, end), placeholder_id=placeholder)
        for modality, placeholder in placeholders.items()
        for start, end in (heard if modality == "audio" else seen,)
    }

    def write(video: MediaReference, sound: MediaReference) -> tuple[int, ...]:
        groups = video.grid_thw[0]
        runs = film_runs(groups, video.num_tokens // groups, sound.num_tokens, video.seconds_per_grid, clock)
        rows = (
            token
            for is_sound, first, last in runs
            for token in (placeholders["audio" if is_sound else "video"],) * (last - first)
        )
        return (seen[0], heard[0], *rows, heard[1], seen[1])

    companion = Companion(modality=FILM_SOUND, placeholder_id=placeholders["audio"], write=write)
    return media | {"video": replace(media["video"], companion=companion)}
