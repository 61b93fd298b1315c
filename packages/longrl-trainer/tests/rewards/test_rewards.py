"""Rewards: one grammar, nothing for an empty shell, no zero for a verifier that failed."""

import asyncio
import dataclasses
import hashlib
from collections.abc import Sequence
from importlib.metadata import EntryPoint

import pytest
from pydantic import BaseModel, Field

from longrl_trainer.errors import TrainerError, TrainerUsageError
from longrl_trainer.objectives.advantages import group_advantages
from longrl_trainer.rewards import registry
from longrl_trainer.rewards.answer import AnswerReward
from longrl_trainer.rewards.base import RewardRequest, RewardResult, RewardStatus
from longrl_trainer.rewards.event_loop import wait_for
from longrl_trainer.rewards.format import FormatReward
from longrl_trainer.rewards.registry import WeightedReward, judged_types, load_rewards, score_responses
from longvideo_reason_data.question_types import QuestionType
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


def totals_of(rewards: list[WeightedReward], *texts: str) -> list[float | None]:
    requests = [RewardRequest(response_text=text, finished=True, record=CHOICE) for text in texts]
    return [score.total for score in score_responses(rewards, requests)]


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
    totals = totals_of(rewards, GOOD, "<answer>B</answer>", "<think>x</think><answer>A</answer>", "what")
    assert totals == pytest.approx([1.0, 0.9, 0.1, 0.0])


class FailingJudge:
    def score(self, response_text: str, *, finished: bool, record: QuestionRecord) -> RewardResult:
        if "right" in response_text:
            return RewardResult(value=None, status=RewardStatus.VERIFIER_ERROR)
        return RewardResult(value=0.5, status=RewardStatus.OK)


def test_a_failed_judge_leaves_the_response_out_of_its_group():
    rewards = [*load_rewards({"format": 1.0}), WeightedReward(name="judge", reward=FailingJudge(), weight=1.0)]
    texts = ["<think>right</think><answer>B</answer>", "<think>x</think><answer>B</answer>", "nothing"]
    totals = totals_of(rewards, *texts)
    assert totals == [None, 1.5, 0.5]
    assert group_advantages(totals, "dr_grpo") == [None, 0.5, -0.5]


def test_a_reward_without_weight_takes_no_response_out():
    rewards = [*load_rewards({"format": 1.0}), WeightedReward(name="judge", reward=FailingJudge(), weight=0.0)]
    texts = ["<think>right</think><answer>B</answer>", "nothing"]
    assert totals_of(rewards, *texts) == totals_of(rewards[:1], *texts) == [1.0, 0.0]


class TextReward:
    """1 for the text of an open question's answer."""

    question_types = frozenset({QuestionType.OPEN})

    async def judge(self, requests: Sequence[RewardRequest]) -> Sequence[RewardResult]:
        await asyncio.sleep(0)
        assert all(request.record.question_type is QuestionType.OPEN for request in requests)
        return [
            RewardResult(value=float(request.record.answer in request.response_text), status=RewardStatus.OK)
            for request in requests
        ]


def test_rewards_are_mixed_by_the_type_of_each_question():
    rewards = [*load_rewards({"answer": 0.8, "format": 0.2}), WeightedReward(name="t", reward=TextReward(), weight=0.8)]
    texts = [(GOOD, CHOICE), (GOOD, OPEN), ("<think>x</think><answer>to the right</answer>", OPEN)]
    requests = [RewardRequest(response_text=text, finished=True, record=record) for text, record in texts]
    scores = score_responses(rewards, requests)
    assert [score.total for score in scores] == [1.0, 0.2, 1.0]
    statuses = [[str(score.terms[name].status) for name in ("answer", "format", "t")] for score in scores]
    assert statuses == [["ok", "ok", "not_applicable"], ["not_applicable", "ok", "ok"], ["not_applicable", "ok", "ok"]]
    assert [score.terms["answer"].parsed for score in scores] == ["B", None, None]


def test_the_types_that_are_judged_are_those_that_a_weighted_reward_is_for():
    form, letters = load_rewards({"format": 1.0}), load_rewards({"answer": 1.0, "format": 1.0})
    texts = WeightedReward(name="t", reward=TextReward(), weight=0.0)
    assert judged_types(form) == frozenset(QuestionType)  # it judges no answers at all
    assert judged_types([*letters, texts]) == {QuestionType.CHOICE}
    weighted = dataclasses.replace(texts, weight=0.5)
    assert judged_types([*letters, weighted]) == {QuestionType.CHOICE, QuestionType.OPEN}


def test_a_response_with_a_control_token_gets_nothing_and_no_reward_sees_it():
    unasked = WeightedReward(name="unasked", reward=Faulty(AssertionError("it was asked")), weight=1.0)
    rewards = [*load_rewards({"answer": 0.9, "format": 0.1}), unasked]
    request = RewardRequest(response_text=GOOD, finished=True, record=CHOICE, has_control_token=True)
    (score,) = score_responses(rewards, [request])
    assert score.total == 0.0
    assert {str(term.status) for term in score.terms.values()} == {"control_token"}


def test_asynchronous_rewards_are_awaited_in_one_event_loop():
    loops: list[asyncio.AbstractEventLoop] = []

    async def note() -> None:
        loops.append(asyncio.get_running_loop())

    wait_for(note())
    wait_for(note())
    assert loops[0] is loops[1]


def test_unknown_rewards_and_empty_weights_are_refused_in_one_line():
    with pytest.raises(TrainerUsageError, match=r"rewards\.answr: there is no such reward; installed: answer, format"):
        load_rewards({"answr": 1.0})
    for weights in ({}, {"answer": 0.0}):
        with pytest.raises(TrainerUsageError, match="weight other than 0"):
            load_rewards(weights)


def test_a_reward_whose_package_is_missing_is_one_line(monkeypatch):
    broken = EntryPoint(name="broken", value="no_such_package:Reward", group=registry.ENTRY_POINT_GROUP)
    monkeypatch.setattr(registry, "known_rewards", lambda _: {"broken": broken})
    with pytest.raises(TrainerUsageError, match=r"rewards\.broken: cannot be loaded from no_such_package:Reward"):
        load_rewards({"broken": 1.0})


class LengthReward:
    """1 for up to a number of words; judges all responses at once and records how many."""

    class Settings(BaseModel):
        """Maximum length of a response."""

        most_words: int = Field(ge=1)
        unit: str = "words"

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.batches: list[int] = []

    def judge(self, requests: Sequence[RewardRequest]) -> Sequence[RewardResult]:
        self.batches.append(len(requests))
        return [
            RewardResult(
                value=float(len(request.response_text.split()) <= self.settings.most_words), status=RewardStatus.OK
            )
            for request in requests
        ]


@pytest.fixture
def with_length(monkeypatch):
    own = EntryPoint(name="length", value="here:LengthReward", group=registry.ENTRY_POINT_GROUP)
    monkeypatch.setattr(EntryPoint, "load", lambda entry_point: globals()[entry_point.attr], raising=True)
    monkeypatch.setattr(registry, "known_rewards", lambda _: {"length": own, "format": _named("FormatReward")})


def _named(name: str) -> EntryPoint:
    return EntryPoint(name="format", value=f"here:{name}", group=registry.ENTRY_POINT_GROUP)


def test_a_reward_has_settings_and_judges_all_responses_of_a_step_at_once(with_length):
    rewards = load_rewards({"length": {"weight": 0.5, "most_words": 2}, "format": 0.25})
    assert totals_of(rewards, "two words", "now three words", GOOD) == [0.5, 0.0, 0.75 - 0.5]
    assert rewards[0].reward.batches == [3]


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"weight": 1.0}, r"rewards\.length\.most_words: Field required; valid here: weight, most_words, unit"),
        ({"weight": 1.0, "most_words": 2, "unitt": "x"}, r"rewards\.length\.unitt: .*not permitted; valid here"),
        ({"weight": 1.0, "most_words": 0}, r"rewards\.length\.most_words: .*greater than or equal to 1"),
    ],
)
def test_wrong_settings_of_a_reward_are_one_line(with_length, settings, line):
    with pytest.raises(TrainerUsageError, match=line):
        load_rewards({"length": settings})
    with pytest.raises(TrainerUsageError, match=r"rewards\.format\.strict: this reward has no settings but weight"):
        load_rewards({"format": {"weight": 1.0, "strict": True}})


class Faulty:
    def __init__(self, results: object) -> None:
        self.results = results

    def judge(self, requests: Sequence[RewardRequest]) -> Sequence[RewardResult]:
        if isinstance(self.results, Exception):
            raise self.results
        return self.results  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("results", "line"),
    [
        (ConnectionError("refused"), r"rewards\.judge: failed \(ConnectionError: refused\)"),
        ([], r"rewards\.judge: returned 0 results for 2 responses"),
        ([RewardResult(value=float("nan"), status=RewardStatus.OK)] * 2, r"rewards\.judge: returned nan, expected"),
    ],
)
def test_a_reward_that_fails_is_named_in_one_line(results, line):
    with pytest.raises(TrainerError, match=line):
        totals_of([WeightedReward(name="judge", reward=Faulty(results), weight=1.0)], "a", "b")
