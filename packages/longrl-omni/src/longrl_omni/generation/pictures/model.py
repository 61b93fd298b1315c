"""A tiny model of the world of pictures: words, an SD3 transformer, and a fixed codec.

The transformer is diffusers' own `SD3Transformer2DModel` in a small size. The caption's words have learned embeddings
in place of a text encoder, which at eight words and a vocabulary of two dozen would have nothing more to learn. In
place of a VAE a fixed codec averages 2 × 2 pixels: flat shapes lose nothing by it that the checker looks at, a trained
VAE would take a third of the quickstart's minutes, and one with random weights would decode to noise.

Shape legend: B samples, W words of a caption, D width of their embeddings, P width of the pooled embedding, 3 colour
channels, E edge of a picture and H edge of its latents.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from longrl_omni.generation.config.recipes import SamplingSection
from longrl_omni.generation.pictures.captions import NUM_WORDS, VOCABULARY, parse_caption
from longrl_omni.generation.pictures.drawing import EDGE
from longrl_omni.generation.policies.adapter_files import save_network_adapters
from longrl_omni.generation.policies.base import Encoding, GenerationPolicy
from longrl_omni.generation.policies.model_files import (
    INDEX_NAME,
    load_part,
    refuse_large_part,
    refuse_other_settings,
    save_folder,
)
from longrl_omni.generation.policies.schedules import shifted_levels
from longrl_omni.generation.policies.stable_diffusion_3 import sd3_velocity
from longrl_trainer.errors import TrainerUsageError

CLASS_NAME = "CaptionedPictures"
WORD_WIDTH, POOLED_WIDTH = 32, 64
HIDDEN_WIDTH, NUM_LAYERS, NUM_HEADS, PATCH = 96, 3, 3, 4
LATENT_EDGE = EDGE // 2
LATENT_MEAN, LATENT_DEVIATION = 0.15, 0.25
"""Those of the values of drawn pictures."""
LEVEL_SHIFT = 3.0
"""The shift of the noise levels, in pretraining and sampling."""


class CaptionEncoder(nn.Module):
    """Embeddings of a caption's words, each with its place, and a pooled one of the whole caption."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(len(VOCABULARY), WORD_WIDTH)
        self.places = nn.Embedding(NUM_WORDS, WORD_WIDTH)
        self.pooled = nn.Sequential(
            nn.Linear(NUM_WORDS * WORD_WIDTH, 2 * POOLED_WIDTH), nn.SiLU(), nn.Linear(2 * POOLED_WIDTH, POOLED_WIDTH)
        )

    def forward(self, words_BW: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings [B, W, D] and [B, P] of captions by the numbers of their words."""
        embeddings_BWD = self.words(words_BW) + self.places.weight
        return embeddings_BWD, self.pooled(embeddings_BWD.flatten(1))


class PicturesPolicy(GenerationPolicy):
    """The tiny model; its own sizes are the only ones."""

    def __init__(self, transformer: nn.Module, encoder: CaptionEncoder) -> None:
        super().__init__()
        self.transformer = transformer
        self.encoder = encoder

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """See `GenerationPolicy.latent_shape`."""
        return 3, LATENT_EDGE, LATENT_EDGE

    def noise_levels(self, num_steps: int) -> tuple[float, ...]:
        """Shifted towards noise, where the caption decides what lies where."""
        return shifted_levels(num_steps, shift=LEVEL_SHIFT)

    def refusal_of(self, prompt: str) -> str | None:
        """See `GenerationPolicy.refusal_of`."""
        try:
            parse_caption(prompt)
        except TrainerUsageError as error:
            return str(error)
        return None

    def encode_prompts(self, prompts: Sequence[str]) -> Sequence[Encoding]:
        """See `GenerationPolicy.encode_prompts`; all captions have as many words."""
        words_BW = number_words(prompts).to(self.device)
        embeddings_BWD, pooled_BP = self.encoder(words_BW)
        return [{"words": words, "pooled": pooled} for words, pooled in zip(embeddings_BWD, pooled_BP, strict=True)]

    def predict(self, latents_BL: Tensor, levels_B: Tensor, encoding: Encoding) -> Tensor:
        """See `GenerationPolicy.predict`."""
        return sd3_velocity(self.transformer, latents_BL, levels_B, encoding["words"], encoding["pooled"])

    def decode(self, latents_BL: Tensor) -> Tensor:
        """See `GenerationPolicy.decode`."""
        pictures_B3HH = (latents_BL * LATENT_DEVIATION + LATENT_MEAN).clamp(0.0, 1.0)
        return functional.interpolate(pictures_B3HH, scale_factor=2, mode="nearest").cpu()

    def save(self, folder: Path) -> None:
        """See `GenerationPolicy.save`."""

        def write(partial: Path) -> None:
            index = {"_class_name": CLASS_NAME, "vocabulary": list(VOCABULARY)}
            (partial / INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n")
            cast(Any, self.transformer).save_pretrained(partial / "transformer")
            words = {name: tensor.contiguous() for name, tensor in self.encoder.state_dict().items()}
            save_file(words, partial / "words.safetensors")

        save_folder(folder, write)

    def save_adapters(self, folder: Path) -> None:
        """See `GenerationPolicy.save_adapters`."""
        save_network_adapters(folder, self.transformer)


class PicturesFamily:
    """Loads the tiny model; see `longrl_omni.generation.policies.base.GenerationFamily`."""

    def load(
        self, folder: Path, *, dtype: torch.dtype, device: torch.device, settings: SamplingSection
    ) -> PicturesPolicy:
        """Load it; the recipe may set no other size, and no guidance, since it never saw an empty caption."""
        from diffusers import SD3Transformer2DModel

        refuse_other_settings(settings, height=EDGE, width=EDGE, frames=1, guidance=1.0)
        encoder = CaptionEncoder()
        with load_part(folder, "words.safetensors"):
            encoder.load_state_dict(load_file(folder / "words.safetensors"))
        place = folder / "transformer"
        refuse_large_part(place, SD3Transformer2DModel)
        with load_part(folder, "transformer"):
            transformer = SD3Transformer2DModel.from_pretrained(
                place, dtype=dtype, use_safetensors=True, local_files_only=True
            )
        return PicturesPolicy(cast(nn.Module, transformer).to(device), encoder.to(device).eval())


def create_pictures_policy(*, seed: int) -> PicturesPolicy:
    """A new model whose weights depend on the seed alone."""
    from diffusers import SD3Transformer2DModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer = SD3Transformer2DModel(
            sample_size=LATENT_EDGE,
            patch_size=PATCH,
            in_channels=3,
            out_channels=3,
            num_layers=NUM_LAYERS,
            num_attention_heads=NUM_HEADS,
            attention_head_dim=HIDDEN_WIDTH // NUM_HEADS,
            joint_attention_dim=WORD_WIDTH,
            caption_projection_dim=HIDDEN_WIDTH,
            pooled_projection_dim=POOLED_WIDTH,
            pos_embed_max_size=LATENT_EDGE // PATCH,
            qk_norm="rms_norm",
        )
        return PicturesPolicy(transformer, CaptionEncoder())


def number_words(captions: Sequence[str]) -> Tensor:
    """The numbers [B, W] of the words of captions.

    Raises:
        TrainerUsageError: One of them is no caption.
    """
    numbers = {word: number for number, word in enumerate(VOCABULARY)}
    return torch.tensor([[numbers[word] for word in parse_caption(caption).words] for caption in captions])


def encode_pictures(pictures_B3EE: Tensor) -> Tensor:
    """The latents [B, 3, H, H] of pictures with values from 0 to 1."""
    return (functional.avg_pool2d(pictures_B3EE, 2) - LATENT_MEAN) / LATENT_DEVIATION
