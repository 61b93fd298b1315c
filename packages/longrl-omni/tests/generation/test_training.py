"""Whole runs of the tiny model, small: every algorithm, its replay, its copies of weights, and kills."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from longrl_omni.generation.config.algorithms import ALGORITHMS
from longrl_omni.generation.config.recipes import GenerateGrpoConfig, GenerationLoraSection
from longrl_omni.generation.grpo import GenerateGrpoResult, train_generation
from longrl_omni.generation.pictures.model import create_pictures_policy
from longrl_omni.generation.policies.base import load_generation_policy
from longrl_omni.generation.policies.trained_weights import TrainedWeights
from longrl_omni.generation.prompts import read_prompts
from longrl_omni.generation.sampling.trajectories import SamplerSettings, draw_samples, replay_step
from longrl_omni.generation.sampling.windows import choose_window
from longrl_omni.generation.updates import GenerationUpdate, noise_again
from longrl_trainer.errors import TrainerError, TrainerUsageError
from longrl_trainer.runs.progress import SilentProgress
from longrl_trainer.training.optimizer import Optimizer

PROMPTS = ("two red circles left of one blue square", "one green square left of one yellow circle")


def read_lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def digest_of_model(folder: Path) -> str:
    path = folder / "model" / "transformer" / "diffusion_pytorch_model.safetensors"
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", list(ALGORITHMS))
def test_every_algorithm_trains_and_begins_where_the_sampler_was(algorithm: str, make_config) -> None:
    config: GenerateGrpoConfig = make_config(algorithm=algorithm)
    result = train_generation(config)
    lines = read_lines(config.output)
    assert [line["step"] for line in lines] == [1, 2]
    for line in lines:
        assert line["ratio_error"] <= 1e-7
        assert line["held_out_reward"] is not None
        assert line["gradient_norm"] > 0
        assert set(line["rewards"]) == {"jpeg_size", "likeness"}
    assert ("log_ratio_sum" in lines[0]) is config.is_reverse
    # Each of four prompts of two steps and three held-out ones was encoded once.
    assert result.prompts_encoded == 7
    assert digest_of_model(config.output) != digest_of_model(config.model.folder.parent)
    assert train_generation(config) == result  # finished: only reported


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["mix_grpo", "diffusion_nft"])
def test_adapters_are_merged_into_a_model_that_loads(algorithm: str, make_config) -> None:
    config: GenerateGrpoConfig = make_config(algorithm=algorithm, lora=GenerationLoraSection(rank=2, alpha=4.0))
    train_generation(config)
    policy = load_generation_policy(
        config.output / "model", dtype=torch.float32, device=torch.device("cpu"), settings=config.sampling
    )
    names = [name for name, _ in policy.transformer.named_parameters()]
    assert not any("lora" in name for name in names)
    assert digest_of_model(config.output) != digest_of_model(config.model.folder.parent)


def draw(policy: Any, *, noisy: tuple[int, ...] = (0,), reduction: Any = "mean", shared: bool = False) -> Any:
    settings = SamplerSettings(
        levels=policy.noise_levels(3),
        noise="flow",
        noise_scale=0.7,
        noisy_steps=noisy,
        kept_steps=noisy,
        shares_initial_noise=shared,
        reduction=reduction,
    )
    return draw_samples(policy, PROMPTS, settings, group_size=2, seeds=[1, 2])


def test_a_replay_in_the_same_batch_has_ratio_one_exactly() -> None:
    policy = create_pictures_policy(seed=0)
    batch = draw(policy, noisy=(0, 1))
    for kept in batch.kept:
        new, _ = replay_step(policy, batch, kept)
        assert torch.equal(new.log_density(kept.taken.next_latents, "mean"), kept.taken.old_log_density)


def test_rounding_latents_to_bfloat16_moves_log_ratios_beyond_a_published_clip() -> None:
    """The reason for which they are kept in float32."""
    policy = create_pictures_policy(seed=0)
    batch = draw(policy)
    (kept,) = batch.kept
    new, _ = replay_step(policy, batch, kept)
    rounded = new.log_density(kept.taken.next_latents.bfloat16().float(), "mean")
    assert (rounded - kept.taken.old_log_density).abs().max() > 1e-4


def test_samples_of_a_group_share_their_first_noise_only_if_asked() -> None:
    policy = create_pictures_policy(seed=0)
    for shared in (True, False):
        first, second, *_ = draw(policy, shared=shared).kept[0].latents
        assert torch.equal(first, second) is shared


def test_a_group_is_drawn_alike_whatever_is_drawn_beside_it() -> None:
    policy = create_pictures_policy(seed=0)
    together = draw(policy)
    alone = draw_samples(policy, PROMPTS[1:], together.settings, group_size=2, seeds=[2])
    torch.testing.assert_close(together.clean[2:], alone.clean, rtol=0, atol=1e-4)


@pytest.mark.parametrize("window", ["all", "progressive", "random"])
def test_one_window_is_shared_by_all_groups_and_spares_the_last_step(window: Any, make_config) -> None:
    config: GenerateGrpoConfig = make_config(
        algorithm="mix_grpo",
        window=window,
        window_steps=4,
        window_patience=2,
        trained_share=0.6,
        sampling={"steps": 10, "samples_per_pass": 4},
    )
    chosen = [choose_window(config, step) for step in range(30)]
    for found in chosen:
        places = found.noisy_steps
        assert places == tuple(range(places[0], places[0] + (9 if window == "all" else 4)))
        assert places[-1] <= 8
        assert set(found.trained_steps) <= set(places)
        assert len(found.trained_steps) == round(0.6 * len(places))
    if window == "progressive":
        assert [found.noisy_steps[0] for found in chosen[:14]] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 0, 0]
    assert choose_window(config, 7) == chosen[7]


def test_adapters_add_exactly_nothing_at_the_start_and_the_start_stays_within_reach() -> None:
    policy = create_pictures_policy(seed=0)
    latents, levels = torch.randn(2, *policy.latent_shape), torch.tensor([0.7, 0.2])
    encoding = policy.encode(PROMPTS)

    @torch.no_grad()
    def ask() -> Tensor:
        return policy.predict(latents, levels, encoding)

    base = ask()
    weights = TrainedWeights(policy.transformer, GenerationLoraSection(rank=4, alpha=8.0), seed=0, keeps_average=True)
    assert torch.equal(ask(), base)
    trained = [weight for weight in policy.transformer.parameters() if weight.requires_grad]
    assert 0 < sum(weight.numel() for weight in trained) < 100_000
    for weight in trained:
        weight.data += 0.1
    moved = ask()
    assert not torch.equal(moved, base)
    with weights.as_at_start():
        assert torch.equal(ask(), base)
    with weights.as_average():
        assert torch.equal(ask(), base)
    weights.follow(decay=0.0)
    with weights.as_average():
        assert torch.equal(ask(), moved)
    assert torch.equal(ask(), moved)
    weights.merge()
    torch.testing.assert_close(ask(), moved, rtol=1e-4, atol=1e-4)


def test_a_policy_that_differs_from_the_sampler_stops_the_run(make_config) -> None:
    config: GenerateGrpoConfig = make_config(algorithm="flow_grpo")
    policy = create_pictures_policy(seed=0)
    batch = draw(policy)
    weights = TrainedWeights(policy.transformer, config.lora, seed=0, keeps_average=False)
    optimizer = Optimizer(policy.transformer, weight_decay=0.0, max_gradient_norm=1.0)
    update = GenerationUpdate(policy=policy, weights=weights, optimizer=optimizer, config=config)
    with torch.no_grad():
        policy.transformer.get_parameter("proj_out.bias").add_(0.01)
    with pytest.raises(TrainerError, match="sampler and policy disagree before the first update"):
        update.run([batch], [1.0, -1.0, 1.0, -1.0], (0,), step=0, learning_rate=1e-3)


def test_a_sample_that_could_not_be_judged_is_not_trained_on(make_config) -> None:
    config: GenerateGrpoConfig = make_config(algorithm="flow_grpo", kl_coefficient=0.0)
    gradients: list[float] = []
    for advantages in ([1.0, -1.0, None, None], [1.0, -1.0, 0.0, 0.0]):
        policy = create_pictures_policy(seed=0)
        weights = TrainedWeights(policy.transformer, config.lora, seed=0, keeps_average=False)
        optimizer = Optimizer(policy.transformer, weight_decay=0.0, max_gradient_norm=1e9)
        update = GenerationUpdate(policy=policy, weights=weights, optimizer=optimizer, config=config)
        found = update.run([draw(policy)], advantages, (0,), step=0, learning_rate=1e-3)
        gradients.append(found.gradient_norm)
    assert gradients[0] == pytest.approx(2 * gradients[1], rel=1e-4)
    with pytest.raises(TrainerError, match="no two samples"):
        update.run([draw(policy)], [None] * 4, (0,), step=0, learning_rate=1e-3)


def test_samples_are_noised_again_over_the_whole_schedule(make_config) -> None:
    config: GenerateGrpoConfig = make_config(algorithm="dgpo")
    policy = create_pictures_policy(seed=0)
    batch = draw(policy)
    low, high = noise_again(batch, config, step=0, place=0)[::-1], noise_again(batch, config, step=0, place=0)
    assert [torch.equal(a.noise, b.noise) for a, b in zip(low[::-1], high, strict=True)] == [True, True]
    for noised in high:
        assert torch.equal(noised.noise[0], noised.noise[1])  # one noise and one level per group
        assert not torch.equal(noised.noise[1], noised.noise[2])
        assert noised.levels[0] == noised.levels[1] != noised.levels[2]
    assert high[0].levels.min() > high[1].levels.max()


@pytest.mark.slow
def test_the_final_model_is_the_average_of_the_weights_after_each_step_if_asked(make_config) -> None:
    policy = create_pictures_policy(seed=0)
    weights = TrainedWeights(
        policy.transformer, GenerationLoraSection(), seed=0, keeps_average=False, keeps_smoothed=True
    )
    bias = policy.transformer.get_parameter("proj_out.bias")
    start = float(bias[0].detach())
    for step, decay in enumerate((0.0, 0.5, 0.75)):
        with torch.no_grad():
            bias[0] = start + step + 1.0
        weights.smooth(decay=decay)
    assert float(bias[0].detach()) == pytest.approx(start + 3.0)
    weights.end_training()
    assert float(bias[0].detach()) == pytest.approx(start + 0.75 * (0.5 * 1.0 + 0.5 * 2.0) + 0.25 * 3.0)

    plain = train_generation(make_config(algorithm="dgpo"))
    config = make_config(
        algorithm="dgpo", output=plain.model_folder.parent.parent / "averaged", final_average_decay=0.9
    )
    averaged = train_generation(config)
    assert averaged.rewards == plain.rewards  # samples are drawn by the weights in training
    assert digest_of_model(config.output) != digest_of_model(plain.model_folder.parent)
    assert averaged.after != plain.after


class FailingProgress(SilentProgress):
    """Ends the process's training from outside in a certain step."""

    def __init__(self, failing_step: int) -> None:
        self.remaining = failing_step

    @contextmanager
    def task(self, description: str, *, total: int, done: int = 0) -> Generator["FailingProgress"]:
        yield self

    def advance(self, amount: int = 1, *, note: str = "") -> None:
        self.remaining -= amount
        if self.remaining == 0:
            raise KeyboardInterrupt


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["mix_grpo", "diffusion_nft"])
def test_an_interrupted_run_continues_and_ends_like_an_undisturbed_one(
    algorithm: str, make_config, tmp_path: Path
) -> None:
    changes = {"algorithm": algorithm, "steps": 4, "checkpoint_every_steps": 2, "final_average_decay": 0.9}
    undisturbed: GenerateGrpoConfig = make_config(**changes, output=tmp_path / "undisturbed")
    expected = train_generation(undisturbed)
    config: GenerateGrpoConfig = make_config(**changes, output=tmp_path / "interrupted")
    with pytest.raises(KeyboardInterrupt):
        train_generation(config, progress=FailingProgress(3))  # one step after the checkpoint
    found = train_generation(config)
    assert digest_of_model(config.output) == digest_of_model(undisturbed.output)
    assert (found.before, found.after, found.rewards) == (expected.before, expected.after, expected.rewards)


@pytest.mark.long
@pytest.mark.parametrize("algorithm", ["mix_grpo", "diffusion_nft"])
def test_a_killed_run_continues_and_ends_like_an_undisturbed_one(algorithm: str, make_config, tmp_path: Path) -> None:
    changes = {"algorithm": algorithm, "steps": 6, "checkpoint_every_steps": 2}
    undisturbed: GenerateGrpoConfig = make_config(**changes, output=tmp_path / "undisturbed")
    expected = train_generation(undisturbed)
    config: GenerateGrpoConfig = make_config(**changes, output=tmp_path / "killed")
    recipe = tmp_path / "config.json"
    recipe.write_text(config.model_dump_json())
    program = (
        "import sys, pathlib; from longrl_omni.generation.config.recipes import GenerateGrpoConfig as C;"
        "from longrl_omni.generation.grpo import train_generation;"
        "train_generation(C.model_validate_json(pathlib.Path(sys.argv[1]).read_text()))"
    )
    child = subprocess.Popen([sys.executable, "-c", program, str(recipe)], env=os.environ)
    while child.poll() is None and not (config.output / "checkpoints" / "step-000002").is_dir():
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not (config.output / "result.json").exists()
    found: GenerateGrpoResult = train_generation(config)
    assert digest_of_model(config.output) == digest_of_model(undisturbed.output)
    assert (found.before, found.after, found.rewards) == (expected.before, expected.after, expected.rewards)
    kept = [{key: value for key, value in line.items() if key != "seconds"} for line in read_lines(config.output)]
    same = [{key: value for key, value in line.items() if key != "seconds"} for line in read_lines(undisturbed.output)]
    assert kept == same


def test_a_folder_with_another_run_is_refused(make_config) -> None:
    train_generation(make_config(steps=1))
    with pytest.raises(TrainerUsageError, match=r"contains another run: settings\.group_size was 2 and is now 4"):
        train_generation(make_config(steps=1, group_size=4))


def test_a_refused_start_leaves_the_folder_to_the_corrected_settings(make_config, tmp_path) -> None:
    (tmp_path / "nothing").mkdir()
    (tmp_path / "nothing" / "notes.txt").write_text("no model")
    right = make_config(steps=1)
    wrong = right.model_copy(update={"model": right.model.model_copy(update={"folder": tmp_path / "nothing"})})
    with pytest.raises(TrainerUsageError, match="has no model_index"):
        train_generation(wrong)
    assert train_generation(right).num_steps == 1


def test_a_prompt_that_the_model_cannot_draw_is_found_before_the_first_step(make_config) -> None:
    config = make_config(steps=1)
    for setting in ("prompts", "held_out_prompts"):
        wrong = config.output.parent / f"wrong_{setting}.txt"
        wrong.write_text(getattr(config, setting).read_text() + "a purple elephant\n")
        with pytest.raises(TrainerUsageError, match=rf"`{setting}` = .*wrong_{setting}.txt: the caption 'a purple"):
            train_generation(config.model_copy(update={setting: wrong}))
        assert not list(config.output.iterdir())
    with pytest.raises(TrainerUsageError, match=r"`prompts` = .*: is no file; expected one of text"):
        read_prompts(config.output, "prompts")
    assert train_generation(config).num_steps == 1
