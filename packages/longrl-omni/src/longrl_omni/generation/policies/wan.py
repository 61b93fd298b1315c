"""Wan 2.1, and 2.2 with two experts: diffusers' own pipeline, of which the loop calls encoder, transformers and VAE.

Noise levels and times come from the pipeline's scheduler. UniPC, the published one, begins just below level 1 and cuts
times to whole numbers, so the times of its levels are looked up; a level between them has level x 1,000, as in the
model's own training. Samples follow the plain Euler step, which has a density, and not UniPC's correction. Guidance is
a second pass with the empty prompt, and latents are (VAE's - mean) / deviation, channel by channel.

Shape legend: B samples, L the shape of a sample's latents (C channels, frames, height and width in latents), F frames
of a clip, H and W its pixels, S text tokens.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from longrl_omni.generation.config.recipes import SamplingSection
from longrl_omni.generation.policies.adapter_files import save_pipeline_adapters
from longrl_omni.generation.policies.base import Encoding, GenerationPolicy
from longrl_omni.generation.policies.model_files import quiet_libraries, save_folder
from longrl_omni.generation.policies.pipelines import TIME_SCALE, load_pipeline, refuse_long_prompt
from longrl_omni.generation.policies.schedules import check_levels
from longrl_trainer.errors import TrainerUsageError

PROMPT_TOKENS = 512
"""Of a prompt that the model reads, and to which prompts are padded."""
HEIGHT, WIDTH, NUM_FRAMES = 480, 832, 81
"""The pipeline's own defaults, which are in no configuration."""
PIPELINE_UNIT = 16
"""The pipeline takes no other multiples of pixels, whatever its VAE."""
FRAMES_PER_SECOND = 16.0
FRAMES_PER_SECOND_5B = 24.0
"""Of Wan 2.2's small model, which is the one with a time for every token; for clips from text they are all the same."""


class WanPolicy(GenerationPolicy):
    """A pipeline in training.

    Args:
        pipeline: Diffusers' `WanPipeline`.
        sampling: The recipe's sizes.

    Raises:
        TrainerUsageError: The sizes don't fit the model, or its scheduler isn't one of flow matching.
    """

    def __init__(self, pipeline: Any, sampling: SamplingSection) -> None:
        super().__init__()
        self.pipeline = pipeline
        experts = [expert for expert in (pipeline.transformer, pipeline.transformer_2) if expert is not None]
        boundary = pipeline.config.boundary_ratio
        if pipeline.transformer is None or (boundary is None) != (len(experts) == 1):
            raise TrainerUsageError(
                f"the pipeline has {len(experts)} transformers and boundary_ratio={boundary}; expected transformer "
                "alone, or transformer_2 and a boundary_ratio besides"
            )
        self.transformer = cast(nn.Module, experts[0]) if boundary is None else nn.ModuleList(experts)
        self._least_time = 0.0 if boundary is None else boundary * pipeline.scheduler.config.num_train_timesteps
        self._experts = experts
        self.frames_per_second = FRAMES_PER_SECOND_5B if pipeline.config.expand_timesteps else FRAMES_PER_SECOND
        self._times: dict[float, float] = {}
        _, *patch = experts[0].config.patch_size
        space, time = pipeline.vae_scale_factor_spatial, pipeline.vae_scale_factor_temporal
        self._edges: list[int] = []
        for name, size, edge in (
            ("height", sampling.height or HEIGHT, patch[0]),
            ("width", sampling.width or WIDTH, patch[1]),
        ):
            _refuse_between(f"sampling.{name}", size, unit=math.lcm(space * edge, PIPELINE_UNIT), rest=0)
            self._edges.append(size // space)
        frames = sampling.frames or NUM_FRAMES
        _refuse_between("sampling.frames", frames, unit=time, rest=1)
        self._num_frames = (frames - 1) // time + 1

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """See `GenerationPolicy.latent_shape`."""
        return self._experts[0].config.in_channels, self._num_frames, *self._edges

    def noise_levels(self, num_steps: int) -> tuple[float, ...]:
        """Those of the pipeline's scheduler; their times are kept for `predict`."""
        with quiet_libraries():
            scheduler = type(self.pipeline.scheduler).from_config(self.pipeline.scheduler.config)
        config = scheduler.config
        if config.get("use_dynamic_shifting") or config.get("prediction_type", "flow_prediction") != "flow_prediction":
            raise TrainerUsageError(
                f"the scheduler, {type(scheduler).__name__}, isn't one of flow matching with a fixed shift; expected "
                "UniPCMultistepScheduler with use_flow_sigmas, or FlowMatchEulerDiscreteScheduler"
            )
        scheduler.set_timesteps(num_steps)
        levels = tuple(scheduler.sigmas.tolist())
        check_levels(levels)
        self._times |= zip(levels, scheduler.timesteps.tolist(), strict=False)  # the last level is never asked for
        return levels

    def refusal_of(self, prompt: str) -> str | None:
        """See `GenerationPolicy.refusal_of`: the encoder would cut it without a word."""
        return refuse_long_prompt(prompt, self.pipeline.tokenizer, most=PROMPT_TOKENS)

    def encode_prompts(self, prompts: Sequence[str]) -> Sequence[Encoding]:
        """See `GenerationPolicy.encode_prompts`; all are padded with zeros to the same length."""
        encodings: list[Encoding] = []
        for prompt in prompts:
            with quiet_libraries():
                tokens_1SD, _ = self.pipeline.encode_prompt(
                    prompt=prompt,
                    do_classifier_free_guidance=False,
                    max_sequence_length=PROMPT_TOKENS,
                    device=self.device,
                )
            encodings.append({"tokens": tokens_1SD[0]})
        return encodings

    def predict(self, latents_BL: Tensor, levels_B: Tensor, encoding: Encoding) -> Tensor:
        """See `GenerationPolicy.predict`; of two experts each is asked about the samples at its noise levels."""
        levels = levels_B.tolist()
        times_B = levels_B.new_tensor([self._times.get(level, level * TIME_SCALE) for level in levels])
        tokens_BSD = encoding["tokens"]
        is_noisy_B = times_B >= self._least_time
        if len(self._experts) == 1 or is_noisy_B.all():
            return self._ask(self._experts[0], latents_BL, times_B, tokens_BSD)
        if not is_noisy_B.any():
            return self._ask(self._experts[1], latents_BL, times_B, tokens_BSD)
        velocity_BL = torch.empty_like(latents_BL)
        for expert, chosen_B in zip(self._experts, (is_noisy_B, ~is_noisy_B), strict=True):
            velocity_BL[chosen_B] = self._ask(expert, latents_BL[chosen_B], times_B[chosen_B], tokens_BSD[chosen_B])
        return velocity_BL

    @torch.no_grad()
    def decode(self, latents_BL: Tensor) -> Tensor:
        """The clips [B, F, 3, H, W]; see `GenerationPolicy.decode`."""
        vae, processor = self.pipeline.vae, self.pipeline.video_processor
        mean_C, deviation_C = (
            torch.tensor(values).view(-1, 1, 1, 1).to(latents_BL)
            for values in (vae.config.latents_mean, vae.config.latents_std)
        )
        clips: list[Tensor] = []
        for latents_L in latents_BL:  # one by one: the VAE takes more memory than the transformer
            clip_13FHW = vae.decode((latents_L * deviation_C + mean_C)[None].to(vae.dtype), return_dict=False)[0]
            clips.append(processor.postprocess_video(clip_13FHW, output_type="pt").float().cpu())
        return torch.cat(clips)

    def save(self, folder: Path) -> None:
        """See `GenerationPolicy.save`."""
        save_folder(folder, self.pipeline.save_pretrained)

    def save_adapters(self, folder: Path) -> None:
        """See `GenerationPolicy.save_adapters`."""
        save_pipeline_adapters(folder, self.pipeline, self._experts)

    @staticmethod
    def _ask(expert: Any, latents_BL: Tensor, times_B: Tensor, tokens_BSD: Tensor) -> Tensor:
        velocity_BL: Tensor = expert(
            hidden_states=latents_BL.to(expert.dtype),
            timestep=times_B,
            encoder_hidden_states=tokens_BSD.to(expert.dtype),
            return_dict=False,
        )[0]
        return velocity_BL.float()


class WanFamily:
    """Loads them; see `longrl_omni.generation.policies.base.GenerationFamily`."""

    def load(self, folder: Path, *, dtype: torch.dtype, device: torch.device, settings: SamplingSection) -> WanPolicy:
        """Load a pipeline from a folder in diffusers' layout, with weights in safetensors; its VAE in float32."""
        from diffusers import WanPipeline

        kinds = {"default": dtype, "vae": torch.float32}
        pipeline = load_pipeline(folder, WanPipeline, dtype=kinds, tokenizers=())
        return WanPolicy(pipeline.to(device), settings)


def _refuse_between(setting: str, value: int, *, unit: int, rest: int) -> None:
    """Refuse a size that the model would round without a word."""
    if value % unit == rest % unit and value >= rest:
        return
    below = max(rest or unit, (value - rest) // unit * unit + rest)
    nearest = sorted({below, below + unit}) if value > below else [below]
    kind = f"a multiple of {unit}" if rest == 0 else f"{rest} more than a multiple of {unit}"
    raise TrainerUsageError(f"{setting} = {value}: expected {kind}; nearest: {' and '.join(map(str, nearest))}")
