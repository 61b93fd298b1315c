"""A run stops before a bad step, with the state of the good ones; ordinary ups and downs don't stop it."""

import math
import random

import pytest
import torch

from longrl_trainer.errors import TrainerError
from longrl_trainer.grpo import train_grpo
from longrl_trainer.runs.journal import read_json_lines
from longrl_trainer.sft import train_sft
from longrl_trainer.training.checkpoints import list_checkpoints
from longrl_trainer.training.divergence import refuse_collapse, refuse_spike
from longrl_trainer.training.opening import open_policy


def test_a_spike_is_a_loss_far_above_the_last_ones():
    falling = [7.0 * 0.8**step for step in range(40)]
    for end in range(1, 40):
        refuse_spike(falling[:end], max_rise=3.0)
    refuse_spike([*falling, 2.9], max_rise=3.0)
    with pytest.raises(TrainerError, match=r"step 41 has the loss 3\.2 after .*`max_loss_rise` \(3\) to go on"):
        refuse_spike([*falling, 3.2], max_rise=3.0)
    refuse_spike([*falling, 3.2], max_rise=4.0)
    refuse_spike([1.0, 1.0, 9.0], max_rise=3.0)  # too early to say
    for loss in (math.nan, math.inf):
        with pytest.raises(TrainerError, match=f"step 1 has the loss {loss}"):
            refuse_spike([loss], max_rise=3.0)


def test_a_collapse_lasts():
    draw = random.Random(0)
    noisy: list[float | None] = [max(0.0, draw.gauss(0.3, 0.3)) for _ in range(200)]
    for end in range(200):
        refuse_collapse(noisy[:end], min_share=0.1)
    refuse_collapse([*noisy, None, *[0.0] * 4], min_share=0.1)
    with pytest.raises(TrainerError, match=r"step 210: the mean reward of the last 10 steps is 0, and was 0\.\d+"):
        refuse_collapse([*noisy, *[0.0] * 10], min_share=0.1)
    refuse_collapse([*noisy, *[0.0] * 10], min_share=0.0)
    refuse_collapse([-1.0] * 30, min_share=0.1)  # always below zero: a share says nothing


@pytest.mark.slow
def test_sft_stops_before_the_bad_step(world, tmp_path):
    options = {"epochs": 8, "checkpoint_every_steps": 1, "warmup_fraction": 0.0, "min_learning_rate_fraction": 1.0}
    train_sft(world.sft(tmp_path / "run", **options | {"epochs": 4}))
    with pytest.raises(TrainerError, match="and is not made; lower `learning_rate`"):
        train_sft(world.sft(tmp_path / "run", learning_rate=3.0, **options))
    last = read_json_lines(tmp_path / "run" / "metrics.jsonl")[-1]
    assert max(checkpoint.step for checkpoint in list_checkpoints(tmp_path / "run")) == last["step"] < 16
    policy = open_policy(world.sft(tmp_path / "nan").model, "float32")
    with torch.no_grad():
        policy.language_model_head.weight[0, 0] = math.nan
    with pytest.raises(TrainerError, match="step 1 has the loss nan"):
        train_sft(world.sft(tmp_path / "nan"), policy=policy)
    assert not (tmp_path / "nan" / "checkpoints").exists()


@pytest.mark.slow
def test_grpo_stops_when_its_reward_is_lost_and_keeps_the_best(started, tmp_path):
    options = {"max_response_tokens": 24, "checkpoint_every_steps": 4}
    train_grpo(started.grpo(tmp_path / "run", steps=12, **options))
    with pytest.raises(TrainerError, match=r"mean reward of the last 10 steps .* `min_reward_share` \(0\.1\)"):
        train_grpo(started.grpo(tmp_path / "run", steps=60, learning_rate=1.0, **options))
    steps = sorted(checkpoint.step for checkpoint in list_checkpoints(tmp_path / "run"))
    assert len(steps) == 2
    assert steps[0] <= 12 < steps[1]
