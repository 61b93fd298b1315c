"""Time ranges: how they are written, their overlap by hand, and the distance term."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typed_questions import ask, respond

from longrl_trainer.rewards.base import RewardResult, RewardStatus
from longrl_trainer.rewards.registry import load_rewards
from longrl_trainer.rewards.verifiers.temporal_iou import read_ranges
from longvideo_reason_data.question_types import QuestionType


def judge(said: str, right: str, distance_weight: float = 0.0) -> RewardResult:
    (weighted,) = load_rewards({"temporal_iou": {"weight": 1.0, "distance_weight": distance_weight}})
    return weighted.reward.score(said, finished=True, record=ask(right, QuestionType.GROUNDING))


@pytest.mark.parametrize(
    ("written", "ranges"),
    [
        ("3.5 - 7", [(3.5, 7)]),
        ("3.5s to 7 seconds", [(3.5, 7)]),
        ("[3, 7] and [10, 12.25]", [(3, 7), (10, 12.25)]),
        ("10-12; 3-7", [(3, 7), (10, 12)]),
        ("00:03-00:07", [(3, 7)]),
        ("1:02:03 until 1:02:10", [(3723, 3730)]),
        ("It happens from 3 to 7 seconds.", [(3, 7)]),
        ("between 3 and 7 s", [(3, 7)]),
        ("3 s – 7 s", [(3, 7)]),
    ],
)
def test_ranges_are_read_however_they_are_written(written, ranges):
    assert read_ranges(written) == tuple(ranges)


@pytest.mark.parametrize("said", ["7 - 3", "5 - 5", "7", "at the end", "3-7 and 9-9", "; ".join(["1-2"] * 65)])
def test_what_is_no_range_is_no_answer(said):
    assert judge(respond(said), "3-7") == RewardResult(value=0.0, status=RewardStatus.NO_ANSWER)


@pytest.mark.parametrize(
    ("said", "right", "value"),
    [
        ("3-7", "3-7", 1.0),
        ("5-9", "3-7", 2 / 6),
        ("0-60", "3-7", 4 / 60),
        ("8-9", "3-7", 0.0),
        ("3-5, 6-7", "3-7", 3 / 4),
        ("3-7, 3-7, 4-6", "3-7", 1.0),  # saying it again changes nothing
        ("3-7", "3-7, 10-14", 0.5),
        ("0-2, 10-14", "3-7, 10-14", 4 / 10),
    ],
)
def test_overlap_by_hand(said, right, value):
    assert judge(respond(said), right).value == pytest.approx(value)


def test_the_distance_term_grows_towards_the_right_range_and_never_beats_an_overlap():
    values = [judge(respond(said), "30-40", 0.2).value for said in ("0-1", "20-21", "28-29", "29-31", "30-40")]
    assert values == sorted(values)
    # gap 29, hull 40; gap 1, hull 12; overlap 1 of 11
    assert values[0] == pytest.approx(0.2 * (1 - 29 / 40))
    assert values[2] == pytest.approx(0.2 * (1 - 1 / 12))
    assert values[3] == pytest.approx(0.2 + 0.8 / 11)
    assert values[4] == 1.0
    assert judge("nothing", "30-40", 0.2).value == 0.0


def test_a_record_without_a_range_is_not_the_models_fault():
    assert judge(respond("3-7"), "at the end").value is None


@given(st.text(alphabet="0123456789.:-, sto[]", max_size=60))
def test_no_text_crashes_and_every_value_is_a_share(text):
    value = judge(respond(text), "3-7", 0.3).value
    assert value is not None
    assert 0.0 <= value <= 1.0
