"""What a recipe of generation refuses, each in one line, and what it resolves to."""

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from longrl_omni.generation.config.recipes import GenerateConfig
from longrl_omni.generation.grpo import train_generation
from longrl_omni.generation.policies.base import load_generation_policy
from longrl_omni.generation.prompts import prompts_of_step, read_prompts
from longrl_omni.generation.rewards.base import ClipRequest, PictureRequest
from longrl_omni.generation.rewards.judging import judge_samples, load_generation_rewards
from longrl_omni.generation.samples import generate_samples
from longrl_trainer.errors import TrainerError, TrainerUsageError
from longrl_trainer.rewards.registry import WeightedReward


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"algorithm": "ppo"}, "Input should be 'flow_grpo'"),
        ({"group_size": 1}, "greater than or equal to 2"),
        ({"noise": "ode"}, 'noise="ode" with noise_scale=0.7 and loss="clipped": expected some'),
        ({"noise_scale": 0.0}, 'noise="flow" with noise_scale=0 and loss="clipped": expected some'),
        ({"noise": "cps", "noise_scale": 1.5}, 'noise_scale=1.5 with noise="cps": expected at most 1'),
        ({"algorithm": "awm", "noise": "flow"}, 'noise="flow" with loss="awm": expected "ode"; remove `noise`'),
        ({"algorithm": "awm", "kl_form": "mean"}, 'kl_form="mean" with loss="awm", which has no densities'),
        ({"algorithm": "dgpo", "initial_noise": "shared"}, "all samples of a prompt would be the same"),
        ({"window_steps": 3}, "window_steps=3: expected at most 2, all steps but the last of sampling.steps=3"),
        ({"sampling": {"samples_per_pass": 5}, "window_steps": 1}, "expected a multiple of group_size=2"),
        (
            {"algorithm": "flow_grpo", "sampling": {"guidance": 2.0, "guidance_in_training": False}},
            "a reverse algorithm trains what was sampled",
        ),
        ({"held_out_reward": "jpeg_size"}, "expected one that is not among the rewards"),
        ({"steps": 0}, "greater than or equal to 1"),
        ({"seeds": 1}, "Extra inputs are not permitted"),
    ],
)
def test_parts_that_do_not_fit_are_refused(changes: dict[str, Any], message: str, make_config) -> None:
    with pytest.raises(ValidationError, match=re.escape(message)):
        make_config(**({"algorithm": "mix_grpo"} | changes))


def test_a_name_stands_for_the_published_parts_and_a_part_counts_more(make_config) -> None:
    config = make_config(algorithm="dance_grpo", noise_scale=0.25)
    resolved = config.model_dump(mode="json")
    found = {name: resolved[name] for name in ("loss", "noise", "noise_scale", "deviation_scope", "initial_noise")}
    assert found == {
        "loss": "clipped",
        "noise": "dance",
        "noise_scale": 0.25,
        "deviation_scope": "group",
        "initial_noise": "shared",
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"rewards": {"beauty": 1.0}},
            "rewards.beauty: there is no such reward; installed: accuracy, aesthetics, checker",
        ),
        ({"rewards": {"jpeg_size": {"weight": 1.0, "quality": 200}}}, "rewards.jpeg_size.quality: Input should be"),
        ({"rewards": {"math:sqrt": 1.0}}, "functions judge texts"),
        ({"held_out_reward": "beauty"}, "there is no such reward"),
        ({"prompts": Path("/nowhere.txt")}, "does not exist; set `prompts`"),
        ({"sampling": {"steps": 3, "height": 64, "samples_per_pass": 4}}, "sampling.height = 64: expected 32"),
        ({"sampling": {"steps": 3, "guidance": 2.0, "samples_per_pass": 4}}, "sampling.guidance = 2: expected 1"),
        ({"model": {"folder": Path("/nowhere")}}, "does not exist; set `model.folder`"),
        ({"lora": {"rank": 0}}, "greater than or equal to 1"),
    ],
)
def test_what_only_a_run_can_know_is_refused_before_it_begins(
    changes: dict[str, Any], message: str, make_config
) -> None:
    with pytest.raises((TrainerUsageError, ValidationError)) as refusal:
        train_generation(make_config(**changes))
    assert message in str(refusal.value)
    assert isinstance(refusal.value, ValidationError) or "\n" not in str(refusal.value)


def test_folders_without_a_known_model_are_refused(tmp_path: Path, make_config) -> None:
    sampling = make_config().sampling

    def load() -> None:
        load_generation_policy(tmp_path, dtype=torch.float32, device=torch.device("cpu"), settings=sampling)

    with pytest.raises(TrainerUsageError, match=r"has no model_index\.json"):
        load()
    (tmp_path / "model_index.json").write_text('{"_class_name": "Painter"}')
    with pytest.raises(TrainerUsageError, match="the model is a Painter, expected one of CaptionedPictures"):
        load()
    (tmp_path / "model_index.json").write_text('{"_class_name": "CaptionedPictures"}')
    with pytest.raises(TrainerError, match=r"words\.safetensors can't be loaded"):
        load()


class Broken:
    def __init__(self, result: Any) -> None:
        self.result = result

    def judge(self, requests: list[PictureRequest]) -> Any:
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


@pytest.mark.parametrize(
    ("result", "message"), [(ValueError("no"), r"failed \(ValueError: no\)"), ([], "returned 0 results for 1")]
)
def test_a_reward_that_fails_stops_the_run(result: Any, message: str) -> None:
    broken = WeightedReward(name="broken", reward=Broken(result), weight=1.0)
    request = PictureRequest(prompt="", picture=torch.zeros(3, 8, 8))
    with pytest.raises(TrainerError, match=f"rewards.broken: {message}"):
        judge_samples([broken], [request])


def test_a_simple_picture_has_a_smaller_file() -> None:
    rewards = load_generation_rewards({"jpeg_size": {"weight": 1.0, "quality": 80}})
    source = torch.Generator().manual_seed(0)
    pictures = [torch.zeros(3, 32, 32), torch.rand(3, 32, 32, generator=source)]
    judged = judge_samples(rewards, [PictureRequest(prompt="", picture=picture) for picture in pictures])
    plain, noisy = judged.totals()
    assert plain is not None
    assert noisy is not None
    assert noisy < plain < 0


def test_colourfulness_by_hand() -> None:
    rewards = load_generation_rewards({"colourfulness": 1.0})
    grey, halves = torch.full((3, 4, 4), 0.5), torch.zeros(3, 4, 4)
    halves[0, :2], halves[2, 2:] = (
        1.0,
        1.0,
    )  # red above blue: red - green is 1 and 0, (red + green) / 2 - blue 0.5 and -1
    judged = judge_samples(rewards, [PictureRequest(prompt="", picture=picture) for picture in (grey, halves)])
    expected = math.hypot(0.5, 0.75) + 0.3 * math.hypot(0.5, -0.25)
    assert judged.totals() == pytest.approx([0.0, expected])


def test_the_colourfulness_of_a_clip_is_that_of_its_mean_frame() -> None:
    rewards = load_generation_rewards({"colourfulness": 1.0})
    clip = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    alone = judge_samples(rewards, [PictureRequest(prompt="", picture=frame) for frame in clip])
    together = judge_samples(rewards, [ClipRequest(prompt="", clip=clip, frames_per_second=8.0)])
    assert together.totals() == pytest.approx([alone.means()["colourfulness"]])


def test_prompts_come_once_per_epoch(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("a\n\n  b  \nc\n")
    prompts = read_prompts(path, "prompts")
    assert prompts == ["a", "b", "c"]
    taken = [prompt for step in range(3) for prompt in prompts_of_step(prompts, step=step, num_prompts=2, seed=0)]
    assert sorted(taken[:3]) == sorted(taken[3:]) == prompts
    path.write_text("\n")
    with pytest.raises(TrainerUsageError, match="has no prompt"):
        read_prompts(path, "prompts")
    path.write_bytes(b"\xff")
    with pytest.raises(TrainerUsageError, match="not UTF-8"):
        read_prompts(path, "prompts")


def test_pictures_are_drawn_and_judged(world: Path, tmp_path: Path) -> None:
    config = GenerateConfig.model_validate(
        {
            "output": tmp_path / "samples",
            "model": {"folder": world / "model"},
            "prompts": world / "held_out_prompts.txt",
            "samples_per_prompt": 2,
            "rewards": {"checker": 1.0},
            "sampling": {"steps": 2},
        }
    )
    assert set(generate_samples(config)) == {"checker"}
    assert len(list(config.output.glob("*.png"))) == 6
    assert len((config.output / "samples.jsonl").read_text().splitlines()) == 6
    with pytest.raises(TrainerUsageError, match="expected no file and no folder with contents"):
        generate_samples(config)
