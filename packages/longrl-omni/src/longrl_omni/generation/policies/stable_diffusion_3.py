"""Stable Diffusion 3 and 3.5: diffusers' own pipeline, of which the loop calls text encoders, transformer and VAE.

What the pipeline does besides is little: noise levels come from its scheduler, its time embedding sees them times 1,000
in float32, guidance is a second pass with the empty prompt, and latents are (VAE's - shift) x scale. Prompts are
encoded one by one and padded as the pipeline pads them, because the padding changes the output.

Shape legend: B samples, L the shape of a sample's latents (channels, height and width in latents), S text tokens.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from longrl_omni.generation.config.recipes import SamplingSection
from longrl_omni.generation.policies.adapter_files import save_pipeline_adapters
from longrl_omni.generation.policies.base import Encoding, GenerationPolicy
from longrl_omni.generation.policies.model_files import quiet_libraries, refuse_other_settings, save_folder
from longrl_omni.generation.policies.pipelines import TIME_SCALE, choose_edges, load_pipeline, refuse_long_prompt
from longrl_omni.generation.policies.schedules import check_levels
from longrl_trainer.errors import TrainerUsageError

T5_TOKENS = 256
"""Of a prompt that T5 reads; the other two encoders always read a long prompt's first 77 tokens only."""


class StableDiffusion3Policy(GenerationPolicy):
    """A pipeline in training.

    Args:
        pipeline: Diffusers' `StableDiffusion3Pipeline`.
        sampling: The recipe's sizes.

    Raises:
        TrainerUsageError: The sizes don't fit the model.
    """

    def __init__(self, pipeline: Any, sampling: SamplingSection) -> None:
        super().__init__()
        self.pipeline = pipeline
        self.transformer = cast(nn.Module, pipeline.transformer)
        scale, unit = pipeline.vae_scale_factor, pipeline.vae_scale_factor * pipeline.patch_size
        height, width = choose_edges(
            sampling,
            default=pipeline.default_sample_size * scale,
            unit=unit,
            most=pipeline.transformer.config.pos_embed_max_size * unit,
        )
        self._edges = height // scale, width // scale

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """See `GenerationPolicy.latent_shape`."""
        return self.pipeline.transformer.config.in_channels, *self._edges

    def noise_levels(self, num_steps: int) -> tuple[float, ...]:
        """Those of the pipeline's scheduler."""
        with quiet_libraries():
            scheduler = type(self.pipeline.scheduler).from_config(self.pipeline.scheduler.config)
        if scheduler.config.get("use_dynamic_shifting"):
            raise TrainerUsageError(
                "the scheduler has use_dynamic_shifting, expected a fixed shift as in SD3 and SD3.5"
            )
        scheduler.set_timesteps(num_steps)
        levels = tuple(scheduler.sigmas.tolist())
        check_levels(levels)
        return levels

    def refusal_of(self, prompt: str) -> str | None:
        """See `GenerationPolicy.refusal_of`."""
        pipeline = self.pipeline
        tokenizer, most = pipeline.tokenizer_3, T5_TOKENS
        if pipeline.text_encoder_3 is None:
            tokenizer, most = pipeline.tokenizer, pipeline.tokenizer_max_length
        return refuse_long_prompt(prompt, tokenizer, most=most)

    def encode_prompts(self, prompts: Sequence[str]) -> Sequence[Encoding]:
        """See `GenerationPolicy.encode_prompts`."""
        encodings: list[Encoding] = []
        for prompt in prompts:
            with quiet_libraries():
                tokens_1SD, _, pooled_1P, _ = self.pipeline.encode_prompt(
                    prompt=prompt, prompt_2=None, prompt_3=None, do_classifier_free_guidance=False, device=self.device
                )
            encodings.append({"tokens": tokens_1SD[0], "pooled": pooled_1P[0]})
        return encodings

    def predict(self, latents_BL: Tensor, levels_B: Tensor, encoding: Encoding) -> Tensor:
        """See `GenerationPolicy.predict`."""
        return sd3_velocity(self.transformer, latents_BL, levels_B, encoding["tokens"], encoding["pooled"])

    @torch.no_grad()
    def decode(self, latents_BL: Tensor) -> Tensor:
        """See `GenerationPolicy.decode`."""
        vae = self.pipeline.vae
        latents_BL = latents_BL / vae.config.scaling_factor + vae.config.shift_factor
        # One by one: the VAE of a large picture takes more memory than the transformer.
        pictures = [vae.decode(one[None].to(vae.dtype), return_dict=False)[0] for one in latents_BL]
        return self.pipeline.image_processor.postprocess(torch.cat(pictures), output_type="pt").float().cpu()

    def save(self, folder: Path) -> None:
        """See `GenerationPolicy.save`."""
        save_folder(folder, self.pipeline.save_pretrained)

    def save_adapters(self, folder: Path) -> None:
        """See `GenerationPolicy.save_adapters`."""
        save_pipeline_adapters(folder, self.pipeline, [self.transformer])


def sd3_velocity(
    transformer: nn.Module, latents_BL: Tensor, levels_B: Tensor, tokens_BSD: Tensor, pooled_BP: Tensor
) -> Tensor:
    """The velocity [B, L] that diffusers' `SD3Transformer2DModel` predicts, in float32.

    Args:
        transformer: The network.
        latents_BL: Where.
        levels_B: Their noise levels.
        tokens_BSD: What the prompts' tokens have become.
        pooled_BP: What each prompt as a whole has become.
    """
    dtype: torch.dtype = cast(Any, transformer).dtype
    velocity_BL: Tensor = transformer(
        hidden_states=latents_BL.to(dtype),
        timestep=levels_B * TIME_SCALE,
        encoder_hidden_states=tokens_BSD.to(dtype),
        pooled_projections=pooled_BP.to(dtype),
        return_dict=False,
    )[0]
    return velocity_BL.float()


class StableDiffusion3Family:
    """Loads them; see `longrl_omni.generation.policies.base.GenerationFamily`."""

    def load(
        self, folder: Path, *, dtype: torch.dtype, device: torch.device, settings: SamplingSection
    ) -> StableDiffusion3Policy:
        """Load a pipeline from a folder in diffusers' layout, with weights in safetensors."""
        from diffusers import StableDiffusion3Pipeline

        refuse_other_settings(settings, frames=1)
        pipeline = load_pipeline(folder, StableDiffusion3Pipeline, dtype=dtype)
        return StableDiffusion3Policy(pipeline.to(device), settings)
