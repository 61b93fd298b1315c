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

from longrl_files.messages import visible
from longrl_omni.generation.config.recipes import SamplingSection
from longrl_omni.generation.policies.base import Encoding, GenerationPolicy
from longrl_omni.generation.policies.model_files import (
    load_part,
    quiet_libraries,
    read_index,
    refuse_large_parts,
    save_folder,
)
from longrl_omni.generation.policies.schedules import check_levels
from longrl_trainer.errors import TrainerUsageError

TIME_SCALE = 1000.0
"""The time embedding sees noise levels times this."""
MOST_PROMPT_TOKENS = 2**20
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
        for part in (pipeline.vae, pipeline.text_encoder, pipeline.text_encoder_2, pipeline.text_encoder_3):
            if part is not None:
                part.requires_grad_(False)
        scale, default = pipeline.vae_scale_factor, pipeline.default_sample_size * pipeline.vae_scale_factor
        unit = scale * pipeline.patch_size
        self._edges: list[int] = []
        for name, size in (("height", sampling.height or default), ("width", sampling.width or default)):
            most = pipeline.transformer.config.pos_embed_max_size * unit
            if size % unit or size > most:
                raise TrainerUsageError(f"sampling.{name} = {size}: expected a multiple of {unit} up to {most}")
            self._edges.append(size // scale)

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
        """See `GenerationPolicy.refusal_of`: the encoder that reads most would cut it, and diffusers only logs that."""
        pipeline = self.pipeline
        tokenizer, most = pipeline.tokenizer_3, T5_TOKENS
        if pipeline.text_encoder_3 is None:
            tokenizer, most = pipeline.tokenizer, pipeline.tokenizer_max_length
        with quiet_libraries():
            num_tokens = len(tokenizer(prompt)["input_ids"])
        if num_tokens <= most:
            return None
        start = visible(prompt, 40)
        return f"the prompt {start} has {num_tokens} tokens, expected at most {most}, which the model reads; shorten it"

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

        index = read_index(folder)
        refuse_large_parts(folder, index)
        # diffusers takes parts that were saved as absent, such as the largest text encoder, for missing.
        absent = dict.fromkeys(name for name, part in index.items() if part == [None, None])
        with load_part(folder, "the pipeline"):
            pipeline: Any = StableDiffusion3Pipeline.from_pretrained(
                folder, dtype=dtype, use_safetensors=True, local_files_only=True, **absent
            )
        for name in ("tokenizer", "tokenizer_2", "tokenizer_3"):
            tokenizer = getattr(pipeline, name)
            # transformers stands a huge number for a length that isn't configured, at which its own code overflows.
            if tokenizer is not None and tokenizer.model_max_length > MOST_PROMPT_TOKENS:
                raise TrainerUsageError(
                    f"`model.folder` = {folder}: {name} has no model_max_length; expected 77 or 512"
                )
        return StableDiffusion3Policy(pipeline.to(device), settings)
