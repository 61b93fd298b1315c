"""Configurations of the parts of Qwen2.5-Omni that speak, talker and vocoder; nothing here uses them."""

from collections.abc import Mapping
from typing import Any

from mrsp_engine.tiny.language import LanguageSizes

__all__ = ["talker_config", "vocoder_config"]


def talker_config(sizes: LanguageSizes, vocabulary_size: int, shared: Mapping[str, Any]) -> dict[str, Any]:
    """What turns the thinker's text into codes; `shared` are the settings of media, as the thinker has them."""
    return {
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
        "vocab_size": vocabulary_size,
        **shared,
    }


def vocoder_config() -> dict[str, Any]:
    """What turns codes into sound."""
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
