"""Rewards: one grammar, nothing for an empty shell, no zero for a verifier that failed."""

import hashlib
from importlib.metadata import EntryPoint

import pytest

from longrl_trainer.config.sections import Section
from longrl_trainer.errors import TrainerError, TrainerUsageError
from longrl_trainer.objectives.advantages import group_advantages
from longrl_trainer.rewards import registry
from longrl_trainer.rewards.answer import AnswerReward
from longrl_trainer.rewards.base import OneByOne, RewardRequest, RewardResult, RewardStatus
from longrl_trainer.rewards.format import FormatReward
from longrl_trainer.rewards.registry import WeightedReward, judge_responses, load_rewards
from longvideo_reason_data.records.record import QuestionRecord, Skill, Split

CHOICE = QuestionRecord(
    question_id="q",
    video_path="v.mp4",
    video_digest=hashlib.sha256(b"v").hexdigest(),
    video_duration_seconds=3.0,
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


def requests_of(texts):
    return [RewardRequest(response_text=text, finished=True, record=CHOICE) for text in texts]


def totals_of(rewards, texts):
    return [score.total for score in judge_responses(rewards, requests_of(texts))]


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
    texts = [GOOD, "<answer>B</answer>", "<think>x</think><answer>A</answer>", "what"]
    assert totals_of(rewards, texts) == pytest.approx([1.0, 0.9, 0.1, 0.0])


class FailingJudge:
    def score(self, response_text: str, *, finished: bool, record: QuestionRecord) -> RewardResult:
        if "right" in response_text:
            return RewardResult(value=None, status=RewardStatus.VERIFIER_ERROR)
        return RewardResult(value=0.5, status=RewardStatus.OK)


def test_a_failed_judge_leaves_the_response_out_of_its_group():
    judge = WeightedReward(name="judge", reward=OneByOne(reward=FailingJudge()), weight=1.0)
    rewards = [*load_rewards({"format": 1.0}), judge]
    texts = ["<think>right</think><answer>B</answer>", "<think>x</think><answer>B</answer>", "nothing"]
    totals = totals_of(rewards, texts)
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


class WordSettings(Section):
    word: str = "right"
    values: tuple[float, float] = (0.0, 1.0)


class WordReward:
    """Judges all at once, and remembers how often it was asked."""

    Settings = WordSettings

    def __init__(self, settings: WordSettings) -> None:
        self.settings = settings
        self.calls: list[int] = []

    def judge(self, requests):
        self.calls.append(len(requests))
        values = [self.settings.values[self.settings.word in request.response_text] for request in requests]
        return [RewardResult(value=value, status=RewardStatus.OK) for value in values]


class Unfit:
    pass


@pytest.fixture
def installed(monkeypatch):
    """Rewards of this module beside those that are installed, found as those of any package are."""
    classes = {"words": WordReward, "failing": FailingJudge, "unfit": Unfit}
    for name, provided in classes.items():
        monkeypatch.setattr(registry, f"_test_{name}", provided, raising=False)
    group = registry.ENTRY_POINT_GROUP
    own = {name: EntryPoint(name, f"{registry.__name__}:_test_{name}", group) for name in classes}
    every = registry.known_rewards() | own
    monkeypatch.setattr(registry, "known_rewards", lambda: every)


def test_a_reward_with_settings_has_a_table_and_is_asked_once_for_all(installed):
    rewards = load_rewards({"words": {"weight": 0.5, "word": "left", "values": [0.25, 1]}, "answer": 1})
    assert totals_of(rewards, ["left", GOOD, "<answer>A</answer> left"]) == [0.5, 1.125, 0.5]
    assert rewards[0].reward.calls == [3]
    assert judge_responses(rewards, []) == []
    assert rewards[0].reward.calls == [3]
    assert load_rewards({"words": 1.0})[0].reward.settings == WordSettings()


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"weight": 1.0, "wrod": "left"}, r"rewards\.words: wrod: unknown key; did you mean 'word'\?"),
        ({"weight": 1.0, "word": 3}, r"rewards\.words: word: got 3, expected: string"),
        ({"word": "left"}, r"rewards\.words\.weight: missing"),
        ({"weight": "much"}, r'rewards\.words\.weight: got "much", expected: number'),
    ],
)
def test_wrong_settings_of_a_reward_are_one_line(installed, entry, message):
    with pytest.raises(TrainerUsageError, match=message) as caught:
        load_rewards({"words": entry})
    assert "\n" not in str(caught.value)


def test_a_reward_without_settings_takes_only_a_weight(installed):
    assert load_rewards({"answer": {"weight": 0.5}})[0].weight == 0.5
    with pytest.raises(TrainerUsageError, match=r"rewards\.answer\.word: unknown key; this reward has no settings"):
        load_rewards({"answer": {"weight": 0.5, "word": "left"}})
    with pytest.raises(TrainerUsageError, match=r"rewards\.unfit: .* has neither `judge` nor `score`"):
        load_rewards({"unfit": 1.0})


def judging(function):
    """A reward that judges like this."""
    reward = WordReward(WordSettings())
    reward.judge = function
    return [WeightedReward(name="mine", reward=reward, weight=1.0)]


def one(value):
    return RewardResult(value=value, status=RewardStatus.OK)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda requests: 1 / 0, "failed with ZeroDivisionError: division by zero"),
        (lambda requests: [one(1.0)], "gave 1 results for 2 responses, expected as many"),
        (lambda requests: [one(1.0)] * 3, "gave 3 results for 2 responses"),
        (lambda requests: [1.0, 0.0], "gave a float, expected a RewardResult"),
        (lambda requests: [one(float("nan"))] * 2, "gave the value nan, expected a finite number"),
    ],
)
def test_a_reward_that_fails_is_named_in_one_line(function, message):
    with pytest.raises(TrainerError, match=rf"rewards\.mine: {message}") as caught:
        judge_responses(judging(function), requests_of(["a", "b"]))
    assert caught.value.exit_code == 1
    assert "\n" not in str(caught.value)
