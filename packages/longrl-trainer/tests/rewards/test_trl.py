"""Reward functions as TRL takes them, imported from a real module by the name in a recipe."""

import sys

import pytest
from typed_questions import ask, respond

from longrl_trainer.errors import TrainerError, TrainerUsageError
from longrl_trainer.rewards.base import RewardRequest
from longrl_trainer.rewards.registry import load_rewards, score_responses

MODULE = """
import asyncio

def brevity(completions, **kwargs):
    return [float(len(completion[0]["content"]) < 60) for completion in completions]

def solved(prompts, completions, solution, question_id, **kwargs):
    assert [prompt[0]["role"] for prompt in prompts] == ["user"] * len(completions)
    assert question_id == ["q"] * len(completions)
    return [float(right in said[0]["content"]) for right, said in zip(solution, completions)]

async def slowly(completions, answer, **kwargs):
    await asyncio.sleep(0)
    return [None if "?" in completion[0]["content"] else 0.5 for completion in completions]

def broken(completions, **kwargs):
    return ["good"] * len(completions)

def short(completions, **kwargs):
    return [1.0]

NUMBER = 3
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "functions_for_trl.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield "functions_for_trl"
    sys.modules.pop("functions_for_trl", None)


def judge(recipe, *texts):
    requests = [RewardRequest(response_text=text, finished=True, record=ask("a boat")) for text in texts]
    return [score.total for score in score_responses(load_rewards(recipe), requests)]


def test_functions_judge_beside_rewards_and_what_they_cannot_judge_is_left_out(module):
    recipe = {f"{module}:brevity": 0.5, f"{module}:solved": {"weight": 1.0}, f"{module}:slowly": 1.0, "format": 0.25}
    texts = [respond("a boat"), respond("a car"), respond("a boat?"), "a boat " * 20]
    assert judge(recipe, *texts) == [2.25, 1.25, None, 1.5]


@pytest.mark.parametrize(
    ("name", "line"),
    [
        (
            "no_such_module:f",
            r"^rewards\.no_such_module:f: 'no_such_module' can't be imported \(ModuleNotFoundError: .*PYTHON",
        ),
        (
            "functions_for_trl:missing",
            r"^rewards\.functions_for_trl:missing: functions_for_trl has no function 'missing'",
        ),
        ("functions_for_trl:NUMBER", r"has no function 'NUMBER'; expected one of TRL's$"),
        (":f", r"^rewards\.:f: '' can't be imported"),
    ],
)
def test_what_is_no_function_is_one_line(module, name, line):
    with pytest.raises(TrainerUsageError, match=line):
        load_rewards({name: 1.0})
    with pytest.raises(TrainerUsageError, match=r"brevity\.most: a function has no settings but weight$"):
        load_rewards({f"{module}:brevity": {"weight": 1.0, "most": 3}})


def test_a_function_that_returns_something_else_is_one_line(module):
    with pytest.raises(
        TrainerError, match=r"^rewards\.functions_for_trl:broken: failed \(ValueError: could not convert"
    ):
        judge({f"{module}:broken": 1.0}, "x")
    with pytest.raises(TrainerError, match=r"^rewards\.functions_for_trl:short: returned 1 results for 2 responses$"):
        judge({f"{module}:short": 1.0}, "x", "y")
