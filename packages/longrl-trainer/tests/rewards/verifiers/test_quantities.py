"""Numbers: every way of writing one, tolerances in decimal arithmetic, and estimates by hand."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typed_questions import ask, respond

from longrl_trainer.rewards.base import RewardResult, RewardStatus
from longrl_trainer.rewards.registry import load_rewards
from longrl_trainer.rewards.verifiers.quantities import read_quantity
from longrl_trainer.rewards.verifiers.regression import mean_relative_accuracy
from longvideo_reason_data.question_types import QuestionType

NUMERIC, REGRESSION = QuestionType.NUMERIC, QuestionType.REGRESSION


def judge(said: str, right: str, answer_type: QuestionType = NUMERIC, **settings: float) -> RewardResult:
    name = "numeric" if answer_type is NUMERIC else "mean_relative_accuracy"
    (weighted,) = load_rewards({name: {"weight": 1.0, **settings}})
    return weighted.reward.score(said, finished=True, record=ask(right, answer_type))


@pytest.mark.parametrize(
    ("written", "number"),
    [
        ("1000", "1000"),
        ("1,000", "1000"),
        ("1,000,000.50", "1000000.50"),
        ("1 000", "1000"),
        ("1’000", "1000"),
        ("1.234,5", "1234.5"),
        ("3,5", "3.5"),
        ("3.50", "3.5"),
        ("-2", "-2"),
        ("−2", "-2"),
        ("1.5e3", "1500"),
        (".5", "0.5"),
        ("$40", "40"),
        ("12%", "12"),
        ("3.", "3"),
        ("There are about 3 boats.", "3"),
        ("**7**", "7"),
        ("Three boats", "3"),
        ("７", "7"),
        ("3 boats, so 3", "3"),
    ],
)
def test_a_number_is_read_however_it_is_written(written, number):
    assert read_quantity(written).number == Decimal(number)


@pytest.mark.parametrize(
    ("said", "status"),
    [
        ("3 or 4", RewardStatus.AMBIGUOUS),
        ("1 2 3 4 5 6 7 8 9", RewardStatus.AMBIGUOUS),
        ("10-20", RewardStatus.AMBIGUOUS),
        ("many", RewardStatus.NO_ANSWER),
        ("b3", RewardStatus.NO_ANSWER),
        ("1.2.3", RewardStatus.NO_ANSWER),
        ("9" * 31, RewardStatus.NO_ANSWER),
        ("3" + " boats" * 200, RewardStatus.NO_ANSWER),
    ],
)
def test_what_is_no_single_number_is_wrong_and_says_why(said, status):
    assert judge(respond(said), "3") == RewardResult(value=0.0, status=status)


@pytest.mark.parametrize(
    ("said", "right", "value"),
    [
        ("5", "5.0", 1.0),
        ("1000", "1,000", 1.0),
        ("300 cm", "3 m", 1.0),
        ("2 minutes", "120 s", 1.0),
        ("3", "3 m", 1.0),
        ("3 kg", "3 m", 0.0),
        ("3 boats", "3", 1.0),
        ("4", "3", 0.0),
        ("0.3", "0.30000000000000000001", 0.0),
    ],
)
def test_a_number_is_right_exactly_if_it_is_the_same_quantity(said, right, value):
    assert judge(respond(said), right).value == value


def test_tolerances_are_exact_and_the_larger_one_counts():
    # In binary arithmetic 0.3 - 0.2 is more than 0.1.
    assert judge(respond("0.3"), "0.2", absolute_tolerance=0.1).value == 1.0
    assert judge(respond("0.31"), "0.2", absolute_tolerance=0.1).value == 0.0
    assert judge(respond("110"), "100", relative_tolerance=0.1).value == 1.0
    assert judge(respond("90"), "100", absolute_tolerance=1, relative_tolerance=0.1).value == 1.0


def test_an_answer_is_taken_from_its_block_and_a_wrong_record_is_not_the_models_fault():
    assert judge("<think>1, 2, 3</think><answer>3</answer>", "3").value == 1.0
    assert judge("I see 3 boats", "3").value == 1.0
    assert judge("<answer>3</answer><answer>4</answer>", "3").status is RewardStatus.AMBIGUOUS
    assert judge("<answer>:</answer>", "3").status is RewardStatus.NO_ANSWER
    assert judge(respond("3"), "three or four") == RewardResult(value=None, status=RewardStatus.VERIFIER_ERROR)


@pytest.mark.parametrize(
    ("given", "right", "scale", "value"),
    [
        ("10", "10", "0", 1.0),
        ("9", "10", "0", 0.8),  # 0.1 is less than 1 - t up to t = 0.85
        ("12.4", "10", "0", 0.6),  # 0.24 is less than 0.25, at t = 0.75
        ("15", "10", "0", 0.0),
        ("-10", "10", "0", 0.0),
        ("0", "0", "0", 1.0),
        ("0.1", "0", "0", 0.0),
        ("0.1", "0", "1", 0.8),
        ("9", "-10", "0", 0.0),
    ],
)
def test_estimates_by_hand(given, right, scale, value):
    assert mean_relative_accuracy(Decimal(given), Decimal(right), min_scale=Decimal(scale)) == pytest.approx(value)


def test_an_estimate_is_converted_to_the_unit_of_the_right_one():
    assert judge(respond("450 cm"), "5 m", REGRESSION).value == pytest.approx(0.8)
    assert judge(respond("450 kg"), "5 m", REGRESSION).value == 0.0


@given(st.text(alphabet="0123456789.,-+eE '%$ kmts:", max_size=60))
def test_no_text_crashes(text):
    judge(respond(text), "3")
    judge(respond(text), "3 m", REGRESSION)
