"""The adapter of FLUX.1 against diffusers' own pipeline, in a tiny size with random weights, made here."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_pipelines import write_tiny_flux

from longrl_omni.generation.config.recipes import SamplingSection
from longrl_omni.generation.grpo import train_generation
from longrl_omni.generation.policies.base import load_generation_policy
from longrl_omni.generation.policies.flux_1 import Flux1Policy
from longrl_omni.generation.sampling.trajectories import guided_velocity
from longrl_trainer.errors import TrainerUsageError

PROMPTS = ("a cat", "two dogs on a hill")
GUIDANCE = 3.5


@pytest.fixture(scope="module")
def flux_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny pipeline with guidance as an input and shifts that depend on the size, like `dev`."""
    folder = tmp_path_factory.mktemp("flux") / "model"
    write_tiny_flux(folder)
    return folder


def load(folder: Path, dtype: torch.dtype = torch.float32, **settings: Any) -> Flux1Policy:
    sampling = SamplingSection.model_validate({"height": 16, "width": 24, "guidance": GUIDANCE} | settings)
    policy = load_generation_policy(folder, dtype=dtype, device=torch.device("cpu"), settings=sampling)
    assert isinstance(policy, Flux1Policy)
    policy.pipeline.set_progress_bar_config(disable=True)
    return policy


def run_pipeline(policy: Flux1Policy, num_steps: int, noise: torch.Tensor, **options: Any) -> tuple[Any, list[Any]]:
    """Its pictures, and what its transformer and its embedding of time received."""
    received: list[dict[str, Any]] = []
    hooks = [
        policy.transformer.register_forward_pre_hook(
            lambda _, __, values: received.append(dict(values)), with_kwargs=True
        ),
        policy.transformer.get_submodule("time_text_embed").register_forward_pre_hook(
            lambda _, values: received[-1].update(embedded=values)
        ),
    ]
    with torch.no_grad():
        found = policy.pipeline(
            prompt=PROMPTS[1],
            height=16,
            width=24,
            num_inference_steps=num_steps,
            guidance_scale=GUIDANCE,
            latents=noise.clone(),
            **options,
        ).images
    for hook in hooks:
        hook.remove()
    return found, received


@pytest.mark.parametrize("num_steps", [4, 10, 28])
@pytest.mark.parametrize("is_dynamic", [True, False])
def test_levels_time_embedding_and_latents_are_those_of_the_pipeline(
    num_steps: int, is_dynamic: bool, flux_folder: Path
) -> None:
    policy = load(flux_folder)
    config = policy.pipeline.scheduler.config
    policy.pipeline.scheduler = type(policy.pipeline.scheduler).from_config(
        config, use_dynamic_shifting=is_dynamic, shift=3.0
    )
    noise = torch.randn(1, *policy.latent_shape, generator=torch.Generator().manual_seed(4))
    expected, received = run_pipeline(policy, num_steps, noise, output_type="latent")
    levels = policy.noise_levels(num_steps)
    assert levels == tuple(policy.pipeline.scheduler.sigmas.tolist())

    asked: list[Any] = []
    hook = policy.transformer.get_submodule("time_text_embed").register_forward_pre_hook(
        lambda _, values: asked.append(values)
    )
    latents, encoding = noise, policy.encode([PROMPTS[1]])
    with torch.no_grad():
        for level, next_level in pairwise(levels):
            velocity = guided_velocity(policy, latents, level, encoding, guidance=GUIDANCE)
            latents = latents - (level - next_level) * velocity
    hook.remove()
    for values, of_pipeline in zip(asked, received, strict=True):  # time, guidance and pooled embedding
        for own, its in zip(values, of_pipeline["embedded"], strict=True):
            assert torch.equal(own, its)
    torch.testing.assert_close(latents, expected, rtol=1e-4, atol=1e-4)


def test_the_two_kinds_of_shift_give_other_levels_which_depend_on_size_if_dynamic(flux_folder: Path) -> None:
    dynamic, larger = load(flux_folder).noise_levels(4), load(flux_folder, height=160).noise_levels(4)
    assert larger[1] > dynamic[1]
    policy = load(flux_folder)
    config = policy.pipeline.scheduler.config
    policy.pipeline.scheduler = type(policy.pipeline.scheduler).from_config(
        config, use_dynamic_shifting=False, shift=1.0
    )
    assert policy.noise_levels(4) == (1.0, 0.75, 0.5, 0.25, 0.0)  # those of schnell


def test_prompts_places_and_pictures_are_those_of_the_pipeline(flux_folder: Path) -> None:
    policy = load(flux_folder)
    noise = torch.randn(1, *policy.latent_shape, generator=torch.Generator().manual_seed(4))
    expected, received = run_pipeline(policy, 2, noise, output_type="pt")
    latents, _ = run_pipeline(policy, 2, noise, output_type="latent")
    torch.testing.assert_close(policy.decode(latents), expected, rtol=1e-5, atol=1e-5)
    assert expected.shape == (1, 3, 16, 24)
    asked: list[dict[str, Any]] = []
    hook = policy.transformer.register_forward_pre_hook(
        lambda _, __, values: asked.append(dict(values)), with_kwargs=True
    )
    with torch.no_grad():
        policy.predict(noise, torch.ones(1), policy.encode([PROMPTS[1]]))
    hook.remove()
    for name in ("encoder_hidden_states", "pooled_projections", "img_ids", "txt_ids", "guidance"):
        assert torch.equal(asked[0][name], received[0][name]), name


def test_times_are_rounded_to_bfloat16_where_the_pipeline_rounds_them(flux_folder: Path) -> None:
    policy = load(flux_folder, torch.bfloat16)
    noise = torch.randn(1, *policy.latent_shape, generator=torch.Generator().manual_seed(4))
    _, received = run_pipeline(policy, 10, noise.bfloat16(), output_type="latent")
    asked: list[Any] = []
    hook = policy.transformer.get_submodule("time_text_embed").register_forward_pre_hook(
        lambda _, values: asked.append(values)
    )
    encoding = policy.encode([PROMPTS[1]])
    with torch.no_grad():
        for level in policy.noise_levels(10)[:-1]:
            guided_velocity(policy, noise, level, encoding, guidance=GUIDANCE)
    hook.remove()
    for values, of_pipeline in zip(asked, received, strict=True):
        assert torch.equal(values[0], of_pipeline["embedded"][0])
        assert torch.equal(values[1], of_pipeline["embedded"][1])


def test_what_does_not_fit_is_one_line(flux_folder: Path) -> None:
    with pytest.raises(TrainerUsageError, match=r"sampling.height = 18: expected a multiple of 4$"):
        load(flux_folder, height=18)
    with pytest.raises(TrainerUsageError, match="guidance_in_training = false: expected true, because guidance is an"):
        load(flux_folder, guidance_in_training=False)
    assert "has 601 tokens, expected at most 512" in (load(flux_folder).refusal_of("a " * 599) or "")


@pytest.mark.slow
def test_the_pipeline_is_trained_with_adapters_whose_file_diffusers_loads(
    flux_folder: Path, make_config, tmp_path: Path
) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS))
    config = make_config(
        algorithm="mix_grpo",
        model={"folder": flux_folder},
        prompts=prompts,
        held_out_prompts=prompts,
        held_out_reward="colourfulness",
        lora={"rank": 2, "alpha": 8.0},
        sampling={"steps": 3, "samples_per_pass": 4, "guidance": GUIDANCE, "height": 16, "width": 24},
    )
    result = train_generation(config)
    assert result.ratio_error <= 1e-6
    assert result.prompts_encoded == 2  # no empty one: guidance is an input
    noise = torch.randn(1, *load(flux_folder).latent_shape, generator=torch.Generator().manual_seed(4))
    start, merged = load(flux_folder), load(result.model_folder)
    before, after = (run_pipeline(policy, 2, noise, output_type="latent")[0] for policy in (start, merged))
    assert (after - before).abs().max() > 1e-3
    start.pipeline.load_lora_weights(config.output / "adapter")
    adapted, _ = run_pipeline(start, 2, noise, output_type="latent")
    torch.testing.assert_close(adapted, after, rtol=1e-3, atol=1e-4)
