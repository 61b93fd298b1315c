"""The adapter of Wan against diffusers' own pipeline, in a tiny size with random weights, made here."""

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import pytest
import torch
from tiny_pipelines import write_tiny_wan
from torch import Tensor

from longrl_omni.generation.config.recipes import GenerateConfig, SamplingSection
from longrl_omni.generation.grpo import GenerateGrpoResult, train_generation
from longrl_omni.generation.policies.base import load_generation_policy
from longrl_omni.generation.policies.wan import WanPolicy
from longrl_omni.generation.samples import generate_samples
from longrl_omni.generation.sampling.trajectories import guided_velocity
from longrl_trainer.errors import TrainerUsageError

PROMPTS = ("a cat", "two dogs on a hill")
SIZES = {"height": 32, "width": 48, "frames": 5}
FRAMES, HEIGHT, WIDTH = 2, 4, 6
"""Of the latents."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny pipeline with one transformer."""
    folder = tmp_path_factory.mktemp("wan") / "model"
    write_tiny_wan(folder)
    return folder


@pytest.fixture(scope="module")
def experts_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One with two experts."""
    folder = tmp_path_factory.mktemp("wan22") / "model"
    write_tiny_wan(folder, shift=5.0, boundary=0.875)
    return folder


def load(folder: Path, **sizes: int) -> WanPolicy:
    sampling = SamplingSection.model_validate(SIZES | sizes)
    policy = load_generation_policy(folder, dtype=torch.float32, device=torch.device("cpu"), settings=sampling)
    assert isinstance(policy, WanPolicy)
    policy.pipeline.set_progress_bar_config(disable=True)
    return policy


def follow(policy: WanPolicy, noise: Tensor, prompt: str, *, num_steps: int, guidance: float = 1.0) -> Tensor:
    """The clean latents by plain Euler steps."""
    latents, encoding = noise, policy.encode([prompt])
    with torch.no_grad():
        for level, next_level in pairwise(policy.noise_levels(num_steps)):
            velocity = guided_velocity(policy, latents, level, encoding, guidance=guidance)
            latents = latents - (level - next_level) * velocity
    return latents


def ask_pipeline(
    policy: WanPolicy, noise: Tensor, *, num_steps: int, guidance: float = 1.0, kind: str = "latent"
) -> Any:
    pipeline = policy.pipeline
    return pipeline(
        prompt=PROMPTS[1],
        num_inference_steps=num_steps,
        guidance_scale=guidance,
        num_frames=SIZES["frames"],
        height=SIZES["height"],
        width=SIZES["width"],
        latents=noise.clone(),
        output_type=kind,
    ).frames


def without_correction(policy: WanPolicy, num_steps: int) -> None:
    """Let the pipeline's scheduler take the plain first-order steps of the ODE, on its own levels."""
    scheduler = policy.pipeline.scheduler
    policy.pipeline.scheduler = type(scheduler).from_config(
        scheduler.config, solver_order=1, disable_corrector=list(range(num_steps))
    )


def noise_for(policy: WanPolicy) -> Tensor:
    return torch.randn(1, *policy.latent_shape, generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("num_steps", [4, 10, 28])
def test_levels_times_prompts_and_latents_are_those_of_the_pipeline(folder: Path, num_steps: int) -> None:
    """The real pipeline runs with the same first noise, and what its transformer receives is noted."""
    policy = load(folder)
    without_correction(policy, num_steps)
    received: list[dict[str, Any]] = []
    embedded: list[Tensor] = []
    hooks = [
        policy.transformer.register_forward_pre_hook(
            lambda _, __, values: received.append(dict(values)), with_kwargs=True
        ),
        policy.transformer.get_submodule("condition_embedder.time_embedder").register_forward_hook(
            lambda _, __, embedding: embedded.append(embedding)
        ),
    ]
    noise = noise_for(policy)
    expected = ask_pipeline(policy, noise, num_steps=num_steps)
    of_pipeline, embedded_by_pipeline = received[:], embedded[:]
    received.clear()
    embedded.clear()
    latents = follow(policy, noise, PROMPTS[1], num_steps=num_steps)
    for hook in hooks:
        hook.remove()

    assert policy.noise_levels(num_steps) == tuple(policy.pipeline.scheduler.sigmas.tolist())
    assert len(of_pipeline) == len(received) == num_steps
    for theirs, ours in zip(of_pipeline, received, strict=True):
        assert theirs["timestep"].tolist() == ours["timestep"].tolist()
        assert torch.equal(theirs["encoder_hidden_states"], ours["encoder_hidden_states"])
    assert all(map(torch.equal, embedded_by_pipeline, embedded))
    torch.testing.assert_close(latents, expected, rtol=1e-4, atol=1e-4)


def test_the_published_schedule_begins_below_noise_and_has_whole_times(folder: Path) -> None:
    levels = load(folder).noise_levels(10)
    assert levels[0] == pytest.approx(1.0 - 1e-6, abs=1e-7)
    assert levels[0] < 1.0
    policy = load(folder)
    policy.noise_levels(10)
    asked: list[list[float]] = []
    policy.transformer.register_forward_pre_hook(
        lambda _, __, values: asked.append(values["timestep"].tolist()), with_kwargs=True
    )
    between = (levels[1] + levels[2]) / 2
    with torch.no_grad():
        for level in (*levels[:4], between):
            guided_velocity(policy, noise_for(policy), level, policy.encode([PROMPTS[0]]), guidance=1.0)
    assert asked[:4] == [[999.0], [964.0], [923.0], [875.0]]
    assert asked[4] == [pytest.approx(1000.0 * between)]


def test_the_scheduler_of_plain_euler_steps_gives_the_same_clips(folder: Path) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    policy = load(folder)
    policy.pipeline.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    noise = noise_for(policy)
    expected = ask_pipeline(policy, noise, num_steps=4, guidance=4.5, kind="pt")
    clips = policy.decode(follow(policy, noise, PROMPTS[1], num_steps=4, guidance=4.5))
    assert clips.shape == (1, 5, 3, 32, 48)
    torch.testing.assert_close(clips, expected, rtol=1e-4, atol=1e-4)


def test_each_of_two_experts_is_asked_at_its_levels(experts_folder: Path) -> None:
    policy = load(experts_folder)
    without_correction(policy, 10)
    noise = noise_for(policy)
    expected = ask_pipeline(policy, noise, num_steps=10, guidance=3.0)
    counts = [0, 0]
    for number, expert in enumerate((policy.pipeline.transformer, policy.pipeline.transformer_2)):
        expert.register_forward_pre_hook(lambda *_, number=number: counts.__setitem__(number, counts[number] + 1))
    latents = follow(policy, noise, PROMPTS[1], num_steps=10, guidance=3.0)
    assert counts == [2 * 5, 2 * 5]  # published shift and boundary: five of ten steps, guided
    torch.testing.assert_close(latents, expected, rtol=1e-4, atol=1e-4)

    # One batch with levels on both sides, as forward losses have, is answered as each sample alone.
    encoding, levels = policy.encode(PROMPTS), torch.tensor([0.95, 0.3])
    both = torch.cat([noise, -noise])
    with torch.no_grad():
        together = policy.predict(both, levels, encoding)
        for place in range(2):
            own = slice(place, place + 1)
            alone = policy.predict(both[own], levels[own], {"tokens": encoding["tokens"][own]})
            torch.testing.assert_close(together[own], alone, rtol=1e-5, atol=1e-5)


def test_a_time_for_every_token(tmp_path: Path) -> None:
    """Wan 2.2's small model."""
    write_tiny_wan(tmp_path / "model", has_token_times=True)
    policy = load(tmp_path / "model")
    without_correction(policy, 4)
    noise = noise_for(policy)
    expected = ask_pipeline(policy, noise, num_steps=4)
    torch.testing.assert_close(follow(policy, noise, PROMPTS[1], num_steps=4), expected, rtol=1e-4, atol=1e-4)
    assert policy.frames_per_second == 24.0


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"frames": 80}, "sampling.frames = 80: expected 1 more than a multiple of 4; nearest: 77 and 81"),
        ({"frames": 2}, "sampling.frames = 2: expected 1 more than a multiple of 4; nearest: 1 and 5"),
        ({"height": 470}, "sampling.height = 470: expected a multiple of 16; nearest: 464 and 480"),
        ({"width": 8}, "sampling.width = 8: expected a multiple of 16; nearest: 16"),
    ],
)
def test_sizes_between_those_of_the_model_are_refused(sizes: dict[str, int], message: str, folder: Path) -> None:
    with pytest.raises(TrainerUsageError, match=re.escape(message)):
        load(folder, **sizes)


def test_what_the_pipeline_would_do_without_a_word_is_refused(folder: Path, tmp_path: Path) -> None:
    policy = load(folder)
    assert policy.refusal_of(" ".join("a" * 250)) is None
    assert "has 601 tokens, expected at most 512" in (policy.refusal_of(" ".join("a" * 300)) or "")
    scheduler = policy.pipeline.scheduler
    policy.pipeline.scheduler = type(scheduler).from_config(scheduler.config, prediction_type="epsilon")
    with pytest.raises(TrainerUsageError, match="UniPCMultistepScheduler, isn't one of flow matching"):
        policy.noise_levels(4)
    write_tiny_wan(tmp_path / "model", boundary=0.9)
    index = tmp_path / "model" / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"boundary_ratio": None}))
    with pytest.raises(TrainerUsageError, match="2 transformers and boundary_ratio=None; expected transformer alone"):
        load(tmp_path / "model")


def train(folder: Path, make_config: Any, tmp_path: Path, **changes: Any) -> tuple[Path, GenerateGrpoResult]:
    """One step with adapters; the folder of the run, and its result."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS))
    settings: dict[str, Any] = {
        "model": {"folder": folder},
        "prompts": prompts,
        "held_out_prompts": prompts,
        "rewards": {"colourfulness": 1.0},
        "held_out_reward": "smoothness",
        "lora": {"rank": 2, "alpha": 8.0},
        "steps": 1,
        "learning_rate": 1e-2,
        "sampling": {"steps": 3, "samples_per_pass": 4, **SIZES},
    }
    config = make_config(**(settings | changes))
    return config.output, train_generation(config)


def read_clip(path: Path) -> tuple[int, float, str, tuple[int, int]]:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = list(container.decode(stream))
        return (
            len(frames),
            float(stream.average_rate or 0),
            stream.codec_context.name,
            (frames[0].height, frames[0].width),
        )


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["flow_grpo", pytest.param("diffusion_nft", marks=pytest.mark.long)])
def test_clips_are_trained_and_adapters_load_in_the_pipeline(
    algorithm: str, folder: Path, make_config: Any, tmp_path: Path
) -> None:
    output, result = train(folder, make_config, tmp_path, algorithm=algorithm)
    assert result.ratio_error <= 1e-6
    assert result.held_out_rewards[0] is not None
    for name in ("before", "after"):
        files = sorted((output / "clips" / name).iterdir())
        assert [file.name for file in files] == ["0000.mp4", "0001.mp4"]
        assert read_clip(files[0]) == (5, 16.0, "h264", (32, 48))

    # What the adapters say, loaded by diffusers, is what the merged model says, and not what the first one says.
    merged, first, adapted = (load(place).pipeline for place in (output / "model", folder, folder))
    adapted.load_lora_weights(output / "adapter")
    noise = noise_for(load(folder))
    values = {"timestep": torch.tensor([500.0]), "encoder_hidden_states": torch.ones(1, 3, 32), "return_dict": False}
    with torch.no_grad():
        said = [pipeline.transformer(hidden_states=noise, **values)[0] for pipeline in (merged, first, adapted)]
    torch.testing.assert_close(said[2], said[0], rtol=1e-4, atol=1e-5)
    assert (said[1] - said[0]).abs().max() > 1e-3


@pytest.mark.slow
def test_two_experts_are_trained_together_and_their_adapters_load(
    experts_folder: Path, make_config: Any, tmp_path: Path
) -> None:
    sampling = {"steps": 4, "samples_per_pass": 4, **SIZES}
    output, result = train(experts_folder, make_config, tmp_path, algorithm="awm", sampling=sampling)
    assert result.ratio_error <= 1e-6
    merged, adapted = (load(place).pipeline for place in (output / "model", experts_folder))
    adapted.load_lora_weights(output / "adapter")
    adapted.load_lora_weights(output / "adapter", weight_name="transformer_2.safetensors", load_into_transformer_2=True)
    first, noise = load(experts_folder).pipeline, noise_for(load(experts_folder))
    values = {"timestep": torch.tensor([500.0]), "encoder_hidden_states": torch.ones(1, 3, 32), "return_dict": False}
    for name in ("transformer", "transformer_2"):
        with torch.no_grad():
            said = [getattr(one, name)(hidden_states=noise, **values)[0] for one in (merged, first, adapted)]
        torch.testing.assert_close(said[2], said[0], rtol=1e-4, atol=1e-5)
        assert (said[1] - said[0]).abs().max() > 1e-4


def test_clips_are_generated_as_files_with_what_rewards_say(folder: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS))
    settings = {
        "output": tmp_path / "samples",
        "model": {"folder": folder},
        "prompts": prompts,
        "rewards": {"smoothness": 1.0, "colourfulness": 0.0},
        "sampling": {"steps": 2, **SIZES},
    }
    means = generate_samples(GenerateConfig.model_validate(settings))
    lines = [json.loads(line) for line in (tmp_path / "samples" / "samples.jsonl").read_text().splitlines()]
    assert [line["file"] for line in lines] == ["00000.mp4", "00001.mp4"]
    assert read_clip(tmp_path / "samples" / "00001.mp4") == (5, 16.0, "h264", (32, 48))
    assert means["smoothness"] == pytest.approx(sum(line["rewards"]["smoothness"] for line in lines) / 2)


def test_a_reward_of_pictures_alone_says_so_before_the_first_clip(
    folder: Path, make_config: Any, tmp_path: Path
) -> None:
    message = (
        "rewards.jpeg_size: judges pictures, and the model generates clips; expected one of colourfulness, smoothness"
    )
    with pytest.raises(TrainerUsageError, match=re.escape(message)):
        train(folder, make_config, tmp_path, rewards={"jpeg_size": 1.0})
    assert not (tmp_path / "run" / "clips").exists()
    with pytest.raises(TrainerUsageError, match="smoothness: judges clips, and the model generates pictures"):
        train_generation(make_config(rewards={"smoothness": 1.0}))
    with pytest.raises(TrainerUsageError, match=r"sampling.frames = 5: expected 1, the only one of this model"):
        train_generation(
            make_config(output=tmp_path / "other", sampling={"steps": 3, "samples_per_pass": 4, "frames": 5})
        )
