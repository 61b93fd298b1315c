"""The adapter of SD3 against diffusers' own pipeline, in a tiny size with random weights, made here."""

import json
import re
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_pipelines import write_tiny_pipeline

from longrl_omni.generation.config.recipes import SamplingSection
from longrl_omni.generation.evaluation import draw_media
from longrl_omni.generation.grpo import train_generation
from longrl_omni.generation.policies.base import load_generation_policy, read_prompts_for
from longrl_omni.generation.policies.stable_diffusion_3 import StableDiffusion3Policy
from longrl_omni.generation.sampling.trajectories import guided_velocity
from longrl_trainer.errors import TrainerError, TrainerUsageError
from mrsp_engine.errors import EngineError

PROMPTS = ("a cat", "two dogs on a hill")


@pytest.fixture(scope="module")
def pipeline_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny pipeline."""
    folder = tmp_path_factory.mktemp("sd3") / "model"
    write_tiny_pipeline(folder)
    return folder


def load(folder: Path, **sizes: int) -> StableDiffusion3Policy:
    sampling = SamplingSection.model_validate(sizes)
    policy = load_generation_policy(folder, dtype=torch.float32, device=torch.device("cpu"), settings=sampling)
    assert isinstance(policy, StableDiffusion3Policy)
    return policy


def test_levels_time_embedding_prompts_and_pictures_are_those_of_the_pipeline(pipeline_folder: Path) -> None:
    """The real pipeline runs with the same first noise, and what its transformer receives is noted."""
    policy = load(pipeline_folder)
    pipeline = policy.pipeline
    pipeline.set_progress_bar_config(disable=True)
    received: list[dict[str, Any]] = []
    hook = policy.transformer.register_forward_pre_hook(
        lambda _, __, values: received.append(dict(values)), with_kwargs=True
    )
    noise = torch.randn(1, *policy.latent_shape, generator=torch.Generator().manual_seed(4))
    expected = pipeline(
        prompt=PROMPTS[1], num_inference_steps=5, guidance_scale=1.0, latents=noise.clone(), output_type="pt"
    ).images
    hook.remove()

    levels = policy.noise_levels(5)
    assert levels == tuple(pipeline.scheduler.sigmas.tolist())
    times = torch.cat([values["timestep"] for values in received])
    torch.testing.assert_close(times, torch.tensor(levels[:-1]) * 1000.0, rtol=1e-6, atol=0)
    encoding = policy.encode([PROMPTS[1]])
    assert torch.equal(received[0]["encoder_hidden_states"], encoding["tokens"])
    assert torch.equal(received[0]["pooled_projections"], encoding["pooled"])

    latents = noise
    with torch.no_grad():
        for level, next_level in pairwise(levels):
            velocity = guided_velocity(policy, latents, level, encoding, guidance=1.0)
            latents = latents - (level - next_level) * velocity
    torch.testing.assert_close(policy.decode(latents), expected, rtol=1e-4, atol=1e-4)


def test_guidance_is_that_of_the_pipeline(pipeline_folder: Path) -> None:
    policy = load(pipeline_folder)
    policy.pipeline.set_progress_bar_config(disable=True)
    noise = torch.randn(1, *policy.latent_shape, generator=torch.Generator().manual_seed(4))
    expected = policy.pipeline(
        prompt=PROMPTS[0], num_inference_steps=2, guidance_scale=4.5, latents=noise.clone(), output_type="latent"
    ).images
    levels, encoding, latents = policy.noise_levels(2), policy.encode([PROMPTS[0]]), noise
    with torch.no_grad():
        for level, next_level in pairwise(levels):
            velocity = guided_velocity(policy, latents, level, encoding, guidance=4.5)
            latents = latents - (level - next_level) * velocity
    torch.testing.assert_close(latents, expected, rtol=1e-4, atol=1e-4)


def test_a_prompt_is_encoded_once_and_alike_whatever_is_beside_it(pipeline_folder: Path) -> None:
    policy = load(pipeline_folder)
    together = policy.encode([*PROMPTS, PROMPTS[0]])
    assert policy.num_encoded == 2
    alone = load(pipeline_folder).encode([PROMPTS[0]])
    assert torch.equal(together["tokens"][2], alone["tokens"][0])


def test_a_pipeline_without_its_largest_text_encoder_is_loaded_and_saved(pipeline_folder: Path, tmp_path: Path) -> None:
    """Many run it so, since that encoder is larger than all the rest; diffusers alone doesn't load what it saved."""
    pipeline = load(pipeline_folder).pipeline
    pipeline.text_encoder_3 = pipeline.tokenizer_3 = None
    pipeline.register_modules(text_encoder_3=None, tokenizer_3=None)
    pipeline.save_pretrained(tmp_path / "model")
    policy = load(tmp_path / "model")
    tokens = policy.encode([PROMPTS[0]])["tokens"]
    assert tokens.shape[-1] == 32
    words = tmp_path / "words.txt"
    words.write_text("a b c d e f g h i j k l m n o\n")
    with pytest.raises(TrainerUsageError, match=r"prompts. = .*words.txt: .* has 17 tokens, expected at most 16"):
        read_prompts_for(policy, words, "prompts")
    assert len(read_prompts_for(load(pipeline_folder), words, "prompts")) == 1  # the largest encoder reads 256
    policy.save(tmp_path / "again")
    assert torch.equal(load(tmp_path / "again").encode([PROMPTS[0]])["tokens"], tokens)


def test_other_sizes(pipeline_folder: Path) -> None:
    policy = load(pipeline_folder, height=8, width=12)
    sampling = SamplingSection(steps=2)
    _, pictures = draw_media(policy, PROMPTS, sampling, num_per_prompt=1, seed=0)
    assert pictures.shape == (2, 3, 8, 12)
    for wrong in ({"height": 10}, {"width": 4000}):
        with pytest.raises(TrainerUsageError, match="expected a multiple of 4 up to 32"):
            load(pipeline_folder, **wrong)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["mix_grpo", "diffusion_nft"])
def test_the_pipeline_is_trained_with_guidance_and_adapters_and_loads_again(
    algorithm: str, pipeline_folder: Path, make_config, tmp_path: Path
) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS))
    config = make_config(
        algorithm=algorithm,
        model={"folder": pipeline_folder},
        prompts=prompts,
        held_out_prompts=prompts,
        held_out_reward="colourfulness",
        lora={"rank": 2},
        sampling={"steps": 3, "samples_per_pass": 4, "guidance": 3.0},
    )
    result = train_generation(config)
    assert result.ratio_error <= 1e-6
    assert result.prompts_encoded == 3  # with the empty one
    assert result.held_out_rewards[0] is not None
    before, after = load(pipeline_folder), load(result.model_folder)
    changed = [
        not torch.equal(old, new)
        for old, new in zip(before.transformer.parameters(), after.transformer.parameters(), strict=True)
    ]
    assert any(changed)
    before.pipeline.load_lora_weights(config.output / "adapter")
    noise = torch.randn(1, *before.latent_shape, generator=torch.Generator().manual_seed(4))
    adapted, merged = (policy.predict(noise, torch.ones(1), policy.encode([PROMPTS[0]])) for policy in (before, after))
    torch.testing.assert_close(adapted, merged, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("model_index.json", {"vae": ["antigravity", "Flight"]}, "takes the part vae from 'antigravity'"),
        ("transformer/config.json", {"num_layers": 10**6}, "num_layers = 1000000, but its files have only"),
        ("transformer/config.json", {"pos_embed_max_size": 10**5}, "config.json asks for 160,000,"),
        ("text_encoder_3/config.json", {"vocab_size": 10**9}, "vocab_size=1000000000: expected"),
        ("tokenizer/tokenizer_config.json", {"model_max_length": 10**30}, "tokenizer has no model_max_length"),
        ("scheduler/scheduler_config.json", '"name/of-a-repository"', "scheduler_config.json is no JSON object"),
        ("vae/notes.json", "[" * 100_000, "not readable as JSON"),
    ],
)
def test_a_pipeline_that_asks_for_more_than_it_holds_is_refused(
    name: str, content: Any, words: str, pipeline_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(pipeline_folder, folder)
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | content) if isinstance(content, dict) else content)
    with pytest.raises((TrainerError, EngineError), match=re.escape(words)):
        load(folder)


def test_a_link_in_a_pipeline_is_refused_unless_it_is_the_hubs(pipeline_folder: Path, tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "snapshots" / "1", tmp_path / "blobs"
    shutil.copytree(pipeline_folder, snapshot)
    blobs.mkdir()
    weights = snapshot / "vae" / "diffusion_pytorch_model.safetensors"
    weights.rename(blobs / "digest")
    weights.symlink_to(Path("../../../blobs/digest"))
    load(snapshot)
    weights.unlink()
    weights.symlink_to(pipeline_folder / "vae" / weights.name)
    with pytest.raises(TrainerUsageError, match="link"):
        load(snapshot)
