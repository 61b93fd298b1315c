"""A reward in a process of its own: real processes, in an environment that doesn't know this package."""

import os
import re
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from longrl_omni.generation.grpo import train_generation
from longrl_omni.generation.rewards.base import PictureRequest
from longrl_omni.generation.rewards.judging import judge_samples, load_generation_rewards
from longrl_trainer.errors import TrainerError, TrainerUsageError
from longrl_trainer.rewards.base import RewardStatus

SCORER = """
import os, signal, sys, time
import numpy as np

def brightness(prompts, pictures):
    print("what a scorer prints is no reply")
    assert all(picture.dtype == np.uint8 and picture.shape[2] == 3 for picture in pictures)
    return [float(picture.mean()) for picture in pictures]

def careful(prompts, pictures):
    values = []
    for prompt, picture in zip(prompts, pictures):
        if prompt == "bad":
            raise ValueError("this prompt\\nis bad")
        values.append({"none": None, "nan": float("nan")}.get(prompt, picture[0, 0, 0]))
    return values

def dying(prompts, pictures):
    print("out of memory", file=sys.stderr)
    os.kill(os.getpid(), signal.SIGKILL)

def leaving(prompts, pictures):
    sys.exit(7)

def slow(prompts, pictures):
    time.sleep(60)

def short(prompts, pictures):
    return [1.0]

def lies_to_longrl(prompts, pictures):
    return ["longrl_omni" in sys.modules or "base" in sys.modules] * len(prompts)
"""


@pytest.fixture
def load(tmp_path: Path) -> Any:
    """Loads the reward with a function of the module above."""
    (tmp_path / "scorer.py").write_text(SCORER)

    def of(function: str, **settings: Any) -> Any:
        table = {"weight": 1.0, "python": sys.executable, "function": function, "folder": str(tmp_path)} | settings
        return load_generation_rewards({"process": table})

    return of


def requests(*prompts: str) -> list[PictureRequest]:
    return [
        PictureRequest(prompt=prompt, picture=torch.full((3, 2, 4), (number + 1) / 255))
        for number, prompt in enumerate(prompts)
    ]


def test_pictures_arrive_as_bytes_and_numbers_come_back(load: Any) -> None:
    rewards = load("scorer:brightness")
    for _ in range(2):
        assert judge_samples(rewards, requests("a", "ü", "")).totals() == [1.0, 2.0, 3.0]
    rewards = load("scorer:lies_to_longrl")
    assert judge_samples(rewards, requests("a")).totals() == [0.0]


def test_what_cannot_be_judged_has_no_value_and_spares_the_others(load: Any) -> None:
    rewards = load("scorer:careful")
    judged = judge_samples(rewards, requests("a", "bad", "none", "nan", "b"))
    assert judged.totals() == [1.0, None, None, None, 5.0]
    bad = judged.results["process"][1]
    assert bad.status is RewardStatus.VERIFIER_ERROR
    assert bad.parsed == "ValueError: this prompt is bad"
    assert judge_samples(load("scorer:short"), requests("a", "b")).totals() == [1.0, 1.0]  # asked one by one


@pytest.mark.parametrize(
    ("function", "settings", "message"),
    [
        ("scorer:dying", {}, "the process of scorer:dying ended with signal 9; its last line: out of memory"),
        ("scorer:leaving", {}, "the process of scorer:leaving ended with code 7"),
        ("scorer:slow", {"timeout_seconds": 0.2}, "scorer:slow didn't answer within 0.2 s; raise `timeout_seconds`"),
    ],
)
def test_a_process_that_ends_or_hangs_is_one_line(load: Any, function: str, settings: Any, message: str) -> None:
    rewards = load(function)
    reward = rewards[0].reward
    reward._settings = reward._settings.model_copy(update=settings)  # after it was imported, which takes longer
    process = reward._process
    with pytest.raises(TrainerError) as raised:
        judge_samples(rewards, requests("a"))
    assert str(raised.value) == f"rewards.process: {message}" or message in str(raised.value)
    assert "\n" not in str(raised.value)
    assert process.poll() is not None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"function": "scorer:nothing"}, "scorer:nothing: can't be imported there (AttributeError: module"),
        ({"function": "absent:f"}, "absent:f: can't be imported there (ModuleNotFoundError: No module named 'absent')"),
        ({"function": "scorer"}, "rewards.process.function: String should match pattern"),
        ({"python": "/nowhere/python"}, "`rewards.process.python` = /nowhere/python: can't be started (No such file"),
        ({"folder": "/nowhere"}, "`rewards.process.folder` = /nowhere: there is no such folder"),
    ],
)
def test_what_cannot_be_started_is_one_line(load: Any, settings: dict[str, str], message: str) -> None:
    with pytest.raises(TrainerUsageError, match=re.escape(message)):
        load(**{"function": "scorer:brightness"} | settings)


def test_the_process_ends_with_its_reward(load: Any) -> None:
    rewards = load("scorer:brightness")
    process = rewards[0].reward._process
    assert process.poll() is None
    assert os.getpgid(process.pid) != os.getpgid(0)  # signals to the run spare it
    del rewards
    deadline = time.monotonic() + 10
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert process.poll() == 0


@pytest.mark.slow
def test_a_run_trains_with_it_and_holds_another_out_that_has_settings(load: Any, make_config, tmp_path: Path) -> None:
    load("scorer:brightness")
    table = {"python": sys.executable, "function": "scorer:careful", "folder": str(tmp_path)}
    config = make_config(
        algorithm="dgpo",
        steps=1,
        rewards={"process": {"weight": 1.0, **table}, "jpeg_size": {"weight": 0.0, "quality": 50}},
        held_out_reward="jpeg_size",
    )
    result = train_generation(config)
    assert result.rewards[0] is not None
    assert result.rewards[0] > 1
    assert result.held_out_rewards[0] is not None
    assert result.held_out_rewards[0] < 0
