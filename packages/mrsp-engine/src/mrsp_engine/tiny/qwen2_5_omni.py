"""A tiny random Qwen2.5-Omni checkpoint in the layout of the published ones, with the parts that speak.

Names of weights and of files, and the keys of every configuration that a reader looks at, are those of the published
models: the thinker lies inside a whole model, special tokens have the names that only this series uses, the end token
is named in the thinker's configuration alone, and voices lie beside the weights as a pickle. Towers are random and only
scaled so that media affect the output.
"""

from pathlib import Path
from typing import Any

import torch
from transformers import Qwen2_5OmniConfig, Qwen2_5OmniForConditionalGeneration, WhisperFeatureExtractor

from mrsp_engine.families.checkpoints import require_empty, write_checkpoint
from mrsp_engine.tiny.language import LanguageSizes
from mrsp_engine.tiny.published.files import PublishedTokenizer, write_json, write_weights
from mrsp_engine.tiny.qwen_vl import TINY_SIZES
from mrsp_engine.tiny.tokenizer import DEFAULT_SYSTEM, END_OF_TEXT, END_OF_TURN
from mrsp_engine.tiny.vision import make_vision_matter

__all__ = ["create_tiny_qwen2_5_omni"]

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

CHAT_TEMPLATE = """\
{%- if messages[0].role != 'system' -%}
{{- '<|im_start|>system\\n@SYSTEM@<|im_end|>\\n' -}}
{%- endif -%}
{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\\n' -}}
{%- if message.content is string -%}
{{- message.content -}}
{%- else -%}
{%- for part in message.content -%}
{%- if part.type == 'image' or 'image' in part -%}
<|vision_bos|><|IMAGE|><|vision_eos|>
{%- elif part.type == 'audio' or 'audio' in part -%}
<|audio_bos|><|AUDIO|><|audio_eos|>
{%- elif part.type == 'video' or 'video' in part -%}
<|vision_bos|><|VIDEO|><|vision_eos|>
{%- elif 'text' in part -%}
{{- part.text -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
""".replace("@SYSTEM@", DEFAULT_SYSTEM)


def create_tiny_qwen2_5_omni(folder: Path, seed: int = 0, sizes: LanguageSizes = TINY_SIZES) -> None:
    """Write a Qwen2.5-Omni checkpoint; see `mrsp_engine.tiny.families.build_tiny`."""
    require_empty(folder)
    tokenizer = PublishedTokenizer(specials=(END_OF_TEXT, TURN_START, END_OF_TURN, *MARKERS.values()), plain=())
    config = _config(tokenizer, sizes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = Qwen2_5OmniForConditionalGeneration(Qwen2_5OmniConfig(**config))
        make_vision_matter([model.thinker.visual.merger, model.thinker.audio_tower.proj])
    weights = {name: weight.contiguous() for name, weight in model.state_dict().items()}

    def write(temporary: Path) -> None:
        write_json(temporary / "config.json", config)
        write_json(temporary / "preprocessor_config.json", _processor())
        write_json(temporary / "chat_template.json", {"chat_template": CHAT_TEMPLATE})
        names: dict[str, Any] = {"extra_special_tokens": MARKERS, **MARKERS}
        tokenizer.write(temporary, template=CHAT_TEMPLATE, max_length=32768, **names)
        write_weights(temporary, weights, num_shards=3)
        torch.save({"Chelsie": {"bos_token": 1, "cond": torch.zeros(1, 4)}}, temporary / "spk_dict.pt")

    write_checkpoint(folder, write)


def _processor() -> dict[str, Any]:
    unit = (PATCH_SIZE * MERGE_SIZE) ** 2
    extractor = WhisperFeatureExtractor(
        feature_size=NUM_MEL_BINS, sampling_rate=SAMPLE_RATE, chunk_length=WINDOW_SECONDS, return_attention_mask=True
    )
    heard = {name: value for name, value in extractor.to_dict().items() if name != "mel_filters"}
    return heard | {
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_processor_type": "Qwen2VLImageProcessor",
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "max_pixels": 16 * unit,
        "merge_size": MERGE_SIZE,
        "min_pixels": unit,
        "patch_size": PATCH_SIZE,
        "processor_class": "Qwen2_5OmniProcessor",
        "temporal_patch_size": 2,
    }


def _config(tokenizer: PublishedTokenizer, sizes: LanguageSizes) -> dict[str, Any]:
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
        "talker_config": {
            "model_type": "qwen2_5_omni_talker",
            "embedding_size": sizes.hidden_size,
            "head_dim": 16,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_attention_heads": 2,
            "num_hidden_layers": 1,
            "num_key_value_heads": 1,
            "rope_scaling": {"mrope_section": [4, 2, 2], "rope_type": "default", "type": "default"},
            "rope_theta": 1000000.0,
            "tts_codec_end_token_id": 6,
            "tts_codec_mask_token_id": 5,
            "tts_codec_pad_token_id": 4,
            "tts_codec_start_token_id": 3,
            "tts_text_end_token_id": 2,
            "tts_text_pad_token_id": 1,
            "tts_text_start_token_id": 0,
            "vocab_size": tokenizer.padded_size(),
            **shared,
        },
        "thinker_config": {
            "model_type": "qwen2_5_omni_thinker",
            "audio_config": _audio_tower(sizes),
            "bos_token_id": tokenizer.ids[TURN_START],
            "eos_token_id": end,
            "pad_token_id": tokenizer.ids[END_OF_TEXT],
            "text_config": _text(tokenizer, sizes),
            "vision_config": _vision_tower(sizes),
            **shared,
        },
        "token2wav_config": _vocoder(),
        "torch_dtype": "float32",
        "transformers_version": "4.50.0.dev0",
    }


def _vocoder() -> dict[str, Any]:
    return {
        "model_type": "qwen2_5_omni_token2wav",
        "bigvgan_config": {
            "model_type": "qwen2_5_omni_bigvgan",
            "mel_dim": 8,
            "resblock_dilation_sizes": [[1, 3, 5]],
            "resblock_kernel_sizes": [3],
            "upsample_initial_channel": 8,
            "upsample_kernel_sizes": [4],
            "upsample_rates": [2],
        },
        "dit_config": {
            "model_type": "qwen2_5_omni_dit",
            "emb_dim": 16,
            "enc_attention_channels": 8,
            "enc_channels": [16, 16, 16, 16, 48],
            "enc_dim": 8,
            "enc_emb_dim": 8,
            "enc_se_channels": 8,
            "head_dim": 16,
            "hidden_size": 32,
            "mel_dim": 8,
            "num_attention_heads": 2,
            "num_embeds": 66,
            "num_hidden_layers": 1,
        },
    }


def _text(tokenizer: PublishedTokenizer, sizes: LanguageSizes) -> dict[str, Any]:
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
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "tie_word_embeddings": False,
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": tokenizer.padded_size(),
    }


def _vision_tower(sizes: LanguageSizes) -> dict[str, Any]:
    return {
        "model_type": "qwen2_5_omni_vision_encoder",
        "depth": 3,
        "fullatt_block_indexes": [2],
        "hidden_act": "silu",
        "hidden_size": 64,
        "in_channels": 3,
        "intermediate_size": 128,
        "num_heads": 2,
        "out_hidden_size": sizes.hidden_size,
        "patch_size": PATCH_SIZE,
        "spatial_merge_size": MERGE_SIZE,
        "spatial_patch_size": PATCH_SIZE,
        "temporal_patch_size": 2,
        "tokens_per_second": PLACES_PER_SECOND,
        "window_size": 112,
    }


def _audio_tower(sizes: LanguageSizes) -> dict[str, Any]:
    return {
        "model_type": "qwen2_5_omni_audio_encoder",
        "d_model": 64,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 128,
        "encoder_layers": 2,
        "max_source_positions": 1500,
        "n_window": 100,
        "num_mel_bins": NUM_MEL_BINS,
        "output_dim": sizes.hidden_size,
    }
