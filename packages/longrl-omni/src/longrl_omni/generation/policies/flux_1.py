"""FLUX.1: diffusers' own pipeline, of which the loop calls text encoders, transformer and VAE.

Latents are packed: a token is a square of 2 x 2 latents, and its place is told to the network beside it. Noise levels
of `dev` are shifted by an amount that grows with the number of tokens, those of `schnell` aren't. `dev` has learned
guidance as a number that is an input; `schnell` has no such input, and is sampled without guidance.

Shape legend: B samples, N tokens of a picture, C numbers of a token, S text tokens, 3 also the parts of a place.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from longrl_omni.generation.config.recipes import SamplingSection
from longrl_omni.generation.policies.adapter_files import save_pipeline_adapters
from longrl_omni.generation.policies.base import Encoding, GenerationPolicy
from longrl_omni.generation.policies.model_files import quiet_libraries, refuse_other_settings, save_folder
from longrl_omni.generation.policies.pipelines import (
    TIME_SCALE,
    choose_edges,
    load_pipeline,
    refuse_long_prompt,
)
from longrl_omni.generation.policies.schedules import check_levels
from longrl_trainer.errors import TrainerUsageError

T5_TOKENS = 512
"""Of a prompt that T5 reads, and to which a shorter one is padded; CLIP reads the first 77 tokens of a long one."""
PACKED = 2
"""Edge of the square of latents that is one token."""


class Flux1Policy(GenerationPolicy):
    """A pipeline in training.

    Args:
        pipeline: Diffusers' `FluxPipeline`.
        sampling: The recipe's sizes and guidance.

    Raises:
        TrainerUsageError: The sizes don't fit the model, or its guidance can't be left out of training.
    """

    def __init__(self, pipeline: Any, sampling: SamplingSection) -> None:
        super().__init__()
        self.pipeline = pipeline
        self.transformer = cast(nn.Module, pipeline.transformer)
        self.has_guidance_input = bool(pipeline.transformer.config.guidance_embeds)
        if self.has_guidance_input and not sampling.guidance_in_training:
            raise TrainerUsageError(
                "sampling.guidance_in_training = false: expected true, because guidance is an input of this model"
            )
        scale = pipeline.vae_scale_factor
        self._height, self._width = choose_edges(
            sampling, default=pipeline.default_sample_size * scale, unit=scale * PACKED, most=None
        )
        self._guidance = sampling.guidance
        rows, columns = self._board
        places = torch.cartesian_prod(torch.arange(rows), torch.arange(columns))
        self._places_N3 = torch.cat([torch.zeros(len(places), 1), places], dim=1)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """See `GenerationPolicy.latent_shape`: [N, C]."""
        rows, columns = self._board
        return rows * columns, self.pipeline.transformer.config.in_channels

    def noise_levels(self, num_steps: int) -> tuple[float, ...]:
        """Those that the pipeline asks its scheduler for."""
        from diffusers.pipelines.flux.pipeline_flux import calculate_shift

        with quiet_libraries():
            scheduler = type(self.pipeline.scheduler).from_config(self.pipeline.scheduler.config)
        setting = scheduler.config.get
        shift = calculate_shift(
            self.latent_shape[0],
            setting("base_image_seq_len", 256),
            setting("max_image_seq_len", 4096),
            setting("base_shift", 0.5),
            setting("max_shift", 1.15),
        )
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1.0 / num_steps, num_steps), mu=shift)
        levels = tuple(scheduler.sigmas.tolist())
        check_levels(levels)
        return levels

    def refusal_of(self, prompt: str) -> str | None:
        """See `GenerationPolicy.refusal_of`."""
        return refuse_long_prompt(prompt, self.pipeline.tokenizer_2, most=T5_TOKENS)

    def encode_prompts(self, prompts: Sequence[str]) -> Sequence[Encoding]:
        """See `GenerationPolicy.encode_prompts`."""
        encodings: list[Encoding] = []
        for prompt in prompts:
            with quiet_libraries():
                tokens_1SD, pooled_1P, _ = self.pipeline.encode_prompt(
                    prompt=prompt, prompt_2=None, device=self.device, max_sequence_length=T5_TOKENS
                )
            encodings.append({"tokens": tokens_1SD[0], "pooled": pooled_1P[0]})
        return encodings

    def predict(self, latents_BL: Tensor, levels_B: Tensor, encoding: Encoding) -> Tensor:
        """See `GenerationPolicy.predict`."""
        dtype: torch.dtype = cast(Any, self.transformer).dtype
        guidance_B = torch.full_like(levels_B, self._guidance) if self.has_guidance_input else None
        velocity_BNC: Tensor = self.transformer(
            hidden_states=latents_BL.to(dtype),
            # Rounded where the pipeline rounds it: the network multiplies it by 1,000 again.
            timestep=(levels_B * TIME_SCALE).to(dtype) / TIME_SCALE,
            guidance=guidance_B,
            pooled_projections=encoding["pooled"].to(dtype),
            encoder_hidden_states=encoding["tokens"].to(dtype),
            txt_ids=torch.zeros(encoding["tokens"].shape[1], 3, device=latents_BL.device, dtype=dtype),
            img_ids=self._places_N3.to(latents_BL.device, dtype),
            return_dict=False,
        )[0]
        return velocity_BNC.float()

    @torch.no_grad()
    def decode(self, latents_BL: Tensor) -> Tensor:
        """See `GenerationPolicy.decode`."""
        pipeline, vae = self.pipeline, self.pipeline.vae
        rows, columns = self._board
        board = latents_BL.view(len(latents_BL), rows, columns, -1, PACKED, PACKED).permute(0, 3, 1, 4, 2, 5)
        latents = board.reshape(len(board), board.shape[1], rows * PACKED, columns * PACKED)
        latents = latents / vae.config.scaling_factor + vae.config.shift_factor
        # One by one: the VAE of a large picture takes much memory.
        pictures = [vae.decode(one[None].to(vae.dtype), return_dict=False)[0] for one in latents]
        return pipeline.image_processor.postprocess(torch.cat(pictures), output_type="pt").float().cpu()

    def save(self, folder: Path) -> None:
        """See `GenerationPolicy.save`."""
        save_folder(folder, self.pipeline.save_pretrained)

    def save_adapters(self, folder: Path) -> None:
        """See `GenerationPolicy.save_adapters`."""
        save_pipeline_adapters(folder, self.pipeline, [self.transformer])

    @property
    def _board(self) -> tuple[int, int]:
        """Rows and columns of tokens."""
        unit = self.pipeline.vae_scale_factor * PACKED
        return self._height // unit, self._width // unit


class Flux1Family:
    """Loads them; see `longrl_omni.generation.policies.base.GenerationFamily`."""

    def load(self, folder: Path, *, dtype: torch.dtype, device: torch.device, settings: SamplingSection) -> Flux1Policy:
        """Load a pipeline from a folder in diffusers' layout, with weights in safetensors."""
        from diffusers import FluxPipeline

        refuse_other_settings(settings, frames=1)
        return Flux1Policy(load_pipeline(folder, FluxPipeline, dtype=dtype).to(device), settings)
