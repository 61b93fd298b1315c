"""A real Qwen2-Audio checkpoint of a few million parameters, built on demand.

The audio counterpart of `mrsp_engine.tiny.qwen2_5_vl`: transformers and vLLM load the folder unchanged, the tokenizer
is trained on the caller's texts, and the randomly initialised audio tower is calibrated so that its output is
informative for the language model. The bytes of a folder depend only on the arguments.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from transformers import (
    Qwen2AudioConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen2AudioProcessor,
    WhisperFeatureExtractor,
)

from longrl_omni.audio.audio_file import SAMPLE_RATE
from longrl_omni.audio.qwen2_audio import save_model
from mrsp_engine.errors import EngineUsageError
from mrsp_engine.families.checkpoints import require_empty, write_checkpoint
from mrsp_engine.tiny.hearing import make_varied_sounds
from mrsp_engine.tiny.language import LanguageSizes, generation_config, language_settings
from mrsp_engine.tiny.tokenizer import DEFAULT_SYSTEM, train_tokenizer

AUDIO_TOKENS = ("<|audio_bos|>", "<|AUDIO|>", "<|audio_eos|>")
MEL_FRAMES_PER_SECOND = 100

CHAT_TEMPLATE = """\
{%- set recordings = namespace(count=0) -%}
{%- if messages[0].role != 'system' -%}
{{- '<|im_start|>system\\n@SYSTEM@<|im_end|>\\n' -}}
{%- endif -%}
{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\\n' -}}
{%- if message.content is string -%}
{{- message.content -}}
{%- else -%}
{%- for part in message.content -%}
{%- if part.type == 'audio' -%}
{%- set recordings.count = recordings.count + 1 -%}
{{- 'Audio ' + recordings.count|string + ': <|audio_bos|><|AUDIO|><|audio_eos|>\\n' -}}
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


@dataclass(frozen=True, slots=True, kw_only=True)
class AudioSizes:
    """Dimensions of a tiny audio tower.

    Attributes:
        hidden_size: Hidden size.
        num_layers: Number of layers.
        num_heads: Attention heads.
        num_mel_bins: Bins of the spectrogram.
        window_seconds: Length of a window.
        token_scale: Root mean square of its tokens over varied audio.
    """

    hidden_size: int = 96
    num_layers: int = 2
    num_heads: int = 4
    num_mel_bins: int = 64
    window_seconds: int = 8
    token_scale: float = 1.0

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_heads:
            raise EngineUsageError(
                f"hidden_size={self.hidden_size} with num_heads={self.num_heads}: the audio tower's heads must divide "
                "its width; change hidden_size or num_heads"
            )
        if self.window_seconds < 1:
            raise EngineUsageError(f"window_seconds={self.window_seconds}: expected 1 or more")


def create_tiny_qwen2_audio(
    folder: Path,
    *,
    corpus: Iterable[str],
    seed: int = 0,
    sizes: LanguageSizes | None = None,
    audio: AudioSizes | None = None,
) -> None:
    """Write a complete, randomly initialised Qwen2-Audio checkpoint in the ordinary Hugging Face layout.

    Args:
        folder: The output folder; it must not exist or be empty.
        corpus: Texts on which the tokenizer is trained (prompts and answers like those the model will see).
        seed: Seed of the weights.
        sizes: Dimensions of the language model.
        audio: Dimensions of the audio tower.

    Raises:
        EngineUsageError: The folder isn't empty.
        EngineError: The folder can't be written.
    """
    require_empty(folder)
    sizes, audio = sizes or LanguageSizes(), audio or AudioSizes()
    with_words = (*corpus, *(f"Audio {number}: \n" for number in range(1, 10)))
    tokenizer = train_tokenizer(with_words, sizes.vocabulary_size - len(AUDIO_TOKENS), sizes.max_position_embeddings)
    tokenizer.add_tokens(list(AUDIO_TOKENS), special_tokens=True)
    extractor = WhisperFeatureExtractor(
        feature_size=audio.num_mel_bins, sampling_rate=SAMPLE_RATE, chunk_length=audio.window_seconds
    )
    config = Qwen2AudioConfig(
        text_config={**language_settings(sizes, tokenizer), "tie_word_embeddings": False},
        audio_config={
            "d_model": audio.hidden_size,
            "encoder_layers": audio.num_layers,
            "encoder_attention_heads": audio.num_heads,
            "encoder_ffn_dim": 2 * audio.hidden_size,
            "num_mel_bins": audio.num_mel_bins,
            "max_source_positions": audio.window_seconds * MEL_FRAMES_PER_SECOND // 2,
        },
        audio_token_index=cast(int, tokenizer.convert_tokens_to_ids(AUDIO_TOKENS[1])),
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2AudioForConditionalGeneration(config)
        _calibrate(model, extractor, audio)
    model.generation_config = generation_config(config.text_config)
    processor = Qwen2AudioProcessor(extractor, tokenizer, chat_template=CHAT_TEMPLATE)

    def write(temporary: Path) -> None:
        save_model(model, temporary)
        processor.save_pretrained(temporary)

    write_checkpoint(folder, write)


@torch.no_grad()
def _calibrate(model: Any, extractor: WhisperFeatureExtractor, audio: AudioSizes) -> None:
    """Centre and scale the tower's tokens over varied audio.

    Fresh weights give tokens that are tiny and nearly identical (their common mean dominates); without the mean, and at
    the size of token embeddings, the language model can distinguish two sounds.
    """
    projector = model.model.multi_modal_projector.linear
    torch.nn.init.normal_(projector.weight, std=1 / math.sqrt(projector.in_features))
    torch.nn.init.zeros_(projector.bias)
    sounds = [sound.numpy() for sound in make_varied_sounds(audio.window_seconds * SAMPLE_RATE, num_sounds=24)]
    features = extractor(sounds, sampling_rate=SAMPLE_RATE, return_tensors="pt")["input_features"]
    tokens_SD = projector(model.model.audio_tower(features).last_hidden_state).flatten(0, 1).double()
    mean_D = tokens_SD.mean(dim=0)
    # Rounded, so that the last bits of another machine's sums don't change the folder.
    factor = float(f"{audio.token_scale / (tokens_SD - mean_D).pow(2).mean().sqrt().item():.3g}")
    projector.weight.mul_(factor)
    projector.bias.copy_((-mean_D * factor).round(decimals=3))
