"""Rewards: one grammar, nothing for an empty shell, no zero for a verifier that failed."""

import hashlib
from importlib.metadata import EntryPoint

import pytest

from longrl_trainer.errors import TrainerUsageError
from longrl_trainer.objectives.advantages import group_advantages
from longrl_trainer.rewards import registry
from longrl_trainer.rewards.answer import AnswerReward
from longrl_trainer.rewards.base import RewardResult, RewardStatus
from longrl_trainer.rewards.format import FormatReward
from longrl_trainer.rewards.registry import load_rewards, score_response
from longvideo_reason_data.records.medium import RecordMedium
from longvideo_reason_data.records.record import QuestionRecord, Skill, Split

CHOICE = QuestionRecord(
    question_id="q",
    media=(RecordMedium(path="v.mp4", digest=hashlib.sha256(b"v").hexdigest(), duration_seconds=3.0),),
    split=Split.TRAIN_RL,
    skill=Skill.GOAL,
    question="Where does the ball go?",
    options=("to the left", "to the right", "up", "down"),
    answer="B",
    evidence=(),
    reasoning="It rolls right.",
    source="test",
    license="Apache-2.0",
)
OPEN = CHOICE.model_copy(update={"options": (), "answer": "to the right"})
GOOD = "<think>It rolls right.</think><answer>B</answer>"


@pytest.mark.parametrize(
    ("text", "finished", "answer", "status", "form"),
    [
        (GOOD, True, 1.0, RewardStatus.OK, 1.0),
        (GOOD, False, 1.0, RewardStatus.OK, 0.0),
        ("<think>It rolls left.</think><answer>A</answer>", True, 0.0, RewardStatus.OK, 1.0),
        ("<think></think><answer>B</answer>", True, 1.0, RewardStatus.OK, 0.0),
        ("<think>x</think><answer></answer>", True, 0.0, RewardStatus.NO_ANSWER, 0.0),
        ("<think>x</think><answer>A</answer><answer>B</answer>", True, 0.0, RewardStatus.AMBIGUOUS, 0.0),
        ("<think>It rolls and rolls and", False, 0.0, RewardStatus.TRUNCATED, 0.0),
        ("<think>It rolls.</think> I cannot tell.", True, 0.0, RewardStatus.NO_ANSWER, 0.0),
        ("", True, 0.0, RewardStatus.NO_ANSWER, 0.0),
    ],
)
def test_answer_and_format_of_a_response(text, finished, answer, status, form):
    judged = AnswerReward().score(text, finished=finished, record=CHOICE)
    assert (judged.value, judged.status) == (answer, status)
    assert FormatReward().score(text, finished=finished, record=CHOICE).value == form


def test_a_question_without_options_is_not_judged_rather_than_wrong():
    judged = AnswerReward().score("<think>x</think><answer>to the right</answer>", finished=True, record=OPEN)
    assert judged == RewardResult(value=None, status=RewardStatus.VERIFIER_ERROR)


def test_weights_are_those_of_the_recipe():
    rewards = load_rewards({"answer": 0.9, "format": 0.1})
    totals = [
        score_response(rewards, text, finished=True, record=CHOICE).total
        for text in (GOOD, "<answer>B</answer>", "<think>x</think><answer>A</answer>", "what")
    ]
    assert totals == pytest.approx([1.0, 0.9, 0.1, 0.0])


class FailingJudge:
    def score(self, response_text: str, *, finished: bool, record: QuestionRecord) -> RewardResult:
        if "right" in response_text:
            return RewardResult(value=None, status=RewardStatus.VERIFIER_ERROR)
        return RewardResult(value=0.5, status=RewardStatus.OK)


def test_a_failed_judge_leaves_the_response_out_of_its_group():
    rewards = [*load_rewards({"format": 1.0}), registry.WeightedReward(name="judge", reward=FailingJudge(), weight=1.0)]
    texts = ["<think>right</think><answer>B</answer>", "<think>x</think><answer>B</answer>", "nothing"]
    totals = [score_response(rewards, text, finished=True, record=CHOICE).total for text in texts]
    assert totals == [None, 1.5, 0.5]
    assert group_advantages(totals, "dr_grpo") == [None, 0.5, -0.5]


def test_unknown_rewards_and_empty_weights_are_refused_in_one_line():
    with pytest.raises(TrainerUsageError, match=r"rewards\.answr: there is no such reward; installed: answer, format"):
        load_rewards({"answr": 1.0})
    for weights in ({}, {"answer": 0.0}):
        with pytest.raises(TrainerUsageError, match="weight other than 0"):
            load_rewards(weights)


def test_a_reward_whose_package_is_missing_is_one_line(monkeypatch):
    broken = EntryPoint(name="broken", value="no_such_package:Reward", group=registry.ENTRY_POINT_GROUP)
    monkeypatch.setattr(registry, "known_rewards", lambda: {"broken": broken})
    with pytest.raises(TrainerUsageError, match=r"rewards\.broken: cannot be loaded from no_such_package:Reward"):
        load_rewards({"broken": 1.0})
