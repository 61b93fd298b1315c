"""Qwen2.5-Omni in its published layout: the thinker inside a whole model, with the parts that speak.

Names of weights and of files, and the keys of every configuration that a reader looks at, are those of the published
models: special tokens have the names that only this series uses, the end token is named in the thinker's configuration
alone, and voices lie beside the weights as a pickle.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    Qwen2_5OmniConfig,
    Qwen2_5OmniForConditionalGeneration,
    Qwen2VLVideoProcessor,
    WhisperFeatureExtractor,
)

from mrsp_engine.errors import EngineUsageError
from mrsp_engine.tiny.language import LanguageSizes
from mrsp_engine.tiny.published.files import (
    CORPUS,
    VOCABULARY_SIZE,
    PublishedTokenizer,
    create_weights,
    write_card,
    write_json,
    write_weights,
)
from mrsp_engine.tiny.published.qwen2_5_omni_speech import talker_config, vocoder_config
from mrsp_engine.tiny.published.templates import QWEN_OMNI_TEMPLATE
from mrsp_engine.tiny.tokenizer import END_OF_TEXT, END_OF_TURN

__all__ = [
    "QWEN_OMNI_KINDS",
    "ThinkerTowers",
    "create_omni_processors",
    "create_omni_tokenizer",
    "omni_config",
    "write_omni_files",
    "write_qwen_omni",
]

QWEN_OMNI_KINDS = ("qwen2_5_omni_7b",)
SIZES = LanguageSizes(
    hidden_size=96, num_layers=3, num_heads=3, num_key_value_heads=1, intermediate_size=128, vocabulary_size=512
)

MARKERS = {
    "image_token": "<|IMAGE|>",
    "audio_token": "<|AUDIO|>",
    "video_token": "<|VIDEO|>",
    "vision_bos_token": "<|vision_bos|>",
    "vision_eos_token": "<|vision_eos|>",
    "audio_bos_token": "<|audio_bos|>",
    "audio_eos_token": "<|audio_eos|>",
}
TURN_START = "<|im_start|>"
PLACES_PER_SECOND, SECONDS_PER_CHUNK = 25, 2
SAMPLE_RATE, WINDOW_SECONDS, NUM_MEL_BINS = 16_000, 8, 64
PATCH_SIZE, MERGE_SIZE = 14, 2
_UNIT = (PATCH_SIZE * MERGE_SIZE) ** 2
"""Pixels of an embedding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ThinkerTowers:
    """Dimensions of what sees and hears.

    Attributes:
        vision_hidden_size: Width of the vision tower.
        vision_num_heads: Its heads.
        vision_depth: Its blocks.
        frame_pixels: Largest frame, in pixels, that isn't shrunk.
        audio_hidden_size: Width of the audio tower.
        audio_num_heads: Its heads.
        audio_depth: Its layers.
        rotary_base: Base of the language model's rotary frequencies.
    """

    vision_hidden_size: int = 64
    vision_num_heads: int = 2
    vision_depth: int = 3
    frame_pixels: int = 16 * _UNIT
    audio_hidden_size: int = 64
    audio_num_heads: int = 2
    audio_depth: int = 2
    rotary_base: float = 1e6

    def __post_init__(self) -> None:
        for sense in ("vision", "audio"):
            width, heads = getattr(self, f"{sense}_hidden_size"), getattr(self, f"{sense}_num_heads")
            if width % heads or (width // heads) % 8:
                raise EngineUsageError(
                    f"{sense}_hidden_size={width} with {sense}_num_heads={heads}: the head size must be a multiple of "
                    f"8; change {sense}_hidden_size or {sense}_num_heads"
                )
        if self.frame_pixels < _UNIT:
            raise EngineUsageError(f"frame_pixels={self.frame_pixels}: expected {_UNIT} or more")


def write_qwen_omni(kind: str, folder: Path, seed: int) -> None:
    """Fill a folder with one of `QWEN_OMNI_KINDS`."""
    tokenizer, towers = create_omni_tokenizer(), ThinkerTowers()
    config: dict[str, Any] = omni_config(tokenizer, SIZES, towers) | {"torch_dtype": "bfloat16"}
    weights = create_weights(Qwen2_5OmniForConditionalGeneration, Qwen2_5OmniConfig(**config), seed)
    write_omni_files(folder, tokenizer, config, towers, weights)
    write_card(folder, kind)


def create_omni_tokenizer(corpus: Iterable[str] = CORPUS, vocabulary_size: int = VOCABULARY_SIZE) -> PublishedTokenizer:
    """A tokenizer with the special tokens of the series."""
    specials = (END_OF_TEXT, TURN_START, END_OF_TURN, *MARKERS.values())
    return PublishedTokenizer(specials=specials, plain=(), corpus=corpus, vocabulary_size=vocabulary_size)


def write_omni_files(
    folder: Path,
    tokenizer: PublishedTokenizer,
    config: Mapping[str, Any],
    towers: ThinkerTowers,
    weights: Mapping[str, Tensor],
) -> None:
    """Write everything but a card."""
    write_json(folder / "config.json", config)
    write_json(folder / "preprocessor_config.json", _processor(towers))
    write_json(folder / "chat_template.json", {"chat_template": QWEN_OMNI_TEMPLATE})
    names: dict[str, Any] = {"extra_special_tokens": MARKERS, **MARKERS}
    tokenizer.write(folder, template=QWEN_OMNI_TEMPLATE, max_length=32768, **names)
    write_weights(folder, weights, num_shards=3)
    torch.save({"Chelsie": {"bos_token": 1, "cond": torch.zeros(1, 4)}}, folder / "spk_dict.pt")


def create_omni_processors(towers: ThinkerTowers) -> tuple[Qwen2VLVideoProcessor, WhisperFeatureExtractor]:
    """What prepares frames and sound for the towers, as the files describe it."""
    size = {"shortest_edge": _UNIT, "longest_edge": towers.frame_pixels}
    videos = Qwen2VLVideoProcessor(size=size, cap_pixels_per_frame=False)
    return videos, WhisperFeatureExtractor(
        feature_size=NUM_MEL_BINS, sampling_rate=SAMPLE_RATE, chunk_length=WINDOW_SECONDS, return_attention_mask=True
    )


def _processor(towers: ThinkerTowers) -> dict[str, Any]:
    videos, extractor = create_omni_processors(towers)
    heard = {name: value for name, value in extractor.to_dict().items() if name != "mel_filters"}
    return heard | {
        "image_mean": list(videos.image_mean),
        "image_processor_type": "Qwen2VLImageProcessor",
        "image_std": list(videos.image_std),
        "max_pixels": towers.frame_pixels,
        "merge_size": MERGE_SIZE,
        "min_pixels": _UNIT,
        "patch_size": PATCH_SIZE,
        "processor_class": "Qwen2_5OmniProcessor",
        "temporal_patch_size": 2,
    }


def omni_config(tokenizer: PublishedTokenizer, sizes: LanguageSizes, towers: ThinkerTowers) -> dict[str, Any]:
    """The whole `config.json`."""
    end = tokenizer.ids[END_OF_TURN]
    shared = {
        "audio_end_token_id": tokenizer.ids["<|audio_eos|>"],
        "audio_start_token_id": tokenizer.ids["<|audio_bos|>"],
        "audio_token_index": tokenizer.ids["<|AUDIO|>"],
        "image_token_index": tokenizer.ids["<|IMAGE|>"],
        "position_id_per_seconds": PLACES_PER_SECOND,
        "seconds_per_chunk": SECONDS_PER_CHUNK,
        "video_token_index": tokenizer.ids["<|VIDEO|>"],
        "vision_end_token_id": tokenizer.ids["<|vision_eos|>"],
        "vision_start_token_id": tokenizer.ids["<|vision_bos|>"],
    }
    return {
        "architectures": ["Qwen2_5OmniModel"],
        "enable_audio_output": True,
        "enable_talker": True,
        "model_type": "qwen2_5_omni",
        "talker_config": talker_config(sizes, tokenizer.padded_size(), shared),
        "thinker_config": {
            "model_type": "qwen2_5_omni_thinker",
            "audio_config": _audio_tower(sizes, towers),
            "bos_token_id": tokenizer.ids[TURN_START],
            "eos_token_id": end,
            "pad_token_id": tokenizer.ids[END_OF_TEXT],
            "text_config": _text(tokenizer, sizes, towers.rotary_base),
            "vision_config": _vision_tower(sizes, towers),
            **shared,
        },
        "token2wav_config": vocoder_config(),
        "torch_dtype": "float32",
        "transformers_version": "4.50.0.dev0",
    }


def _text(tokenizer: PublishedTokenizer, sizes: LanguageSizes, rotary_base: float) -> dict[str, Any]:
    pairs = sizes.head_size // 2
    return {
        "model_type": "qwen2_5_omni_text",
        "hidden_act": "silu",
        "hidden_size": sizes.hidden_size,
        "initializer_range": sizes.initializer_range,
        "intermediate_size": sizes.intermediate_size,
        "max_position_embeddings": sizes.max_position_embeddings,
        "max_window_layers": sizes.num_layers,
        "num_attention_heads": sizes.num_heads,
        "num_hidden_layers": sizes.num_layers,
        "num_key_value_heads": sizes.num_key_value_heads,
        "rms_norm_eps": 1e-06,
        "rope_scaling": {
            "mrope_section": [pairs - 2 * (pairs // 4), pairs // 4, pairs // 4],
            "rope_type": "default",
            "type": "default",
        },
        "rope_theta": rotary_base,
        "sliding_window": 32768,
        "tie_word_embeddings": False,
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": tokenizer.padded_size(),
    }


def _vision_tower(sizes: LanguageSizes, towers: ThinkerTowers) -> dict[str, Any]:
    return {
        "model_type": "qwen2_5_omni_vision_encoder",
        "depth": towers.vision_depth,
        "fullatt_block_indexes": [towers.vision_depth - 1],
        "hidden_act": "silu",
        "hidden_size": towers.vision_hidden_size,
        "in_channels": 3,
        "intermediate_size": 2 * towers.vision_hidden_size,
        "num_heads": towers.vision_num_heads,
        "out_hidden_size": sizes.hidden_size,
        "patch_size": PATCH_SIZE,
        "spatial_merge_size": MERGE_SIZE,
        "spatial_patch_size": PATCH_SIZE,
        "temporal_patch_size": 2,
        "tokens_per_second": PLACES_PER_SECOND,
        "window_size": 112,
    }


def _audio_tower(sizes: LanguageSizes, towers: ThinkerTowers) -> dict[str, Any]:
    return {
        "model_type": "qwen2_5_omni_audio_encoder",
        "d_model": towers.audio_hidden_size,
        "encoder_attention_heads": towers.audio_num_heads,
        "encoder_ffn_dim": 2 * towers.audio_hidden_size,
        "encoder_layers": towers.audio_depth,
        "max_source_positions": 1500,
        "n_window": 100,
        "num_mel_bins": NUM_MEL_BINS,
        "output_dim": sizes.hidden_size,
    }
