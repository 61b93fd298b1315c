"""Texts that are read off, by hand; ROUGE is logged and can't be rewarded."""

import pytest
from typed_questions import ask, respond

from longrl_trainer.errors import TrainerUsageError
from longrl_trainer.rewards.base import RewardRequest
from longrl_trainer.rewards.registry import load_rewards, score_responses
from longrl_trainer.rewards.verifiers.rouge import rouge_l
from longvideo_reason_data.question_types import QuestionType


def judge(said: str, right: str, unit: str = "words") -> float | None:
    (weighted,) = load_rewards({"word_error_rate": {"weight": 1.0, "unit": unit}})
    return weighted.reward.score(respond(said), finished=True, record=ask(right, QuestionType.OCR)).value


@pytest.mark.parametrize(
    ("said", "right", "value"),
    [
        ("Exit only, on the left", "EXIT ONLY ON THE LEFT!", 1.0),
        ("exit on the left", "exit only on the left", 4 / 5),
        ("exit only on the right", "exit only on the left", 4 / 5),
        ("please exit only on the left", "exit only on the left", 4 / 5),
        ("ＥＸＩＴ", "exit", 1.0),
        ("no idea at all", "exit", 0.0),  # three more than there are
        ("B", "B", 1.0),
        ("left the on only exit", "exit only on the left", 1 / 5),
    ],
)
def test_words_by_hand(said, right, value):
    assert judge(said, right) == pytest.approx(value)


def test_characters_by_hand():
    assert judge("出囗", "出口", "characters") == 0.5
    assert judge("出囗", "出口") == 0.0
    assert judge("ex it", "exit", "characters") == 1.0


def test_a_right_text_without_words_is_not_the_models_fault():
    assert judge("exit", "!!") is None


def test_a_long_answer_costs_no_time():
    assert judge("word " * 20_000, "exit only " * 2_000) == 0.0


def test_rouge_is_logged_and_refused_as_a_reward():
    # "the red umbrella": 2 words of 3 and of 4 in order
    assert rouge_l("the red umbrella", "a red big umbrella") == pytest.approx(4 / 7)
    assert rouge_l("", "a") == 0.0
    rewards = load_rewards({"rouge": 0.0, "format": 0.1})
    (score,) = score_responses(rewards, [RewardRequest(response_text=respond("red"), finished=True, record=ask("red"))])
    assert (score.total, score.terms["rouge"].value) == (0.1, 1.0)
    with pytest.raises(TrainerUsageError, match=r"^rewards\.rouge: got 0\.5, expected 0, because it is measured and"):
        load_rewards({"rouge": 0.5})
