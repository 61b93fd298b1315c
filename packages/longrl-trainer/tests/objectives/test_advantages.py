"""Advantages against numbers computed by hand, and the rules that hold for every group."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longrl_trainer.objectives.advantages import group_advantages, has_spread

REWARDS = [1.0, 0.0, 0.0, 3.0]  # mean 1; squared deviations 0, 1, 1, 4; sample variance 6 / 3 = 2


def test_grpo_divides_by_the_sample_standard_deviation():
    expected = [0.0, -1 / math.sqrt(2), -1 / math.sqrt(2), 2 / math.sqrt(2)]
    assert group_advantages(REWARDS, "grpo") == pytest.approx(expected, abs=1e-5)


def test_dr_grpo_only_subtracts_the_mean():
    assert group_advantages(REWARDS, "dr_grpo") == [0.0, -1.0, -1.0, 2.0]


def test_rloo_compares_with_the_mean_of_the_others():
    # 1 - (0 + 0 + 3) / 3;  0 - (1 + 0 + 3) / 3;  the same;  3 - (1 + 0 + 0) / 3
    assert group_advantages(REWARDS, "rloo") == pytest.approx([0.0, -4 / 3, -4 / 3, 8 / 3])


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "rloo"])
def test_a_response_without_reward_has_no_advantage_and_does_not_count(name):
    with_hole = group_advantages([1.0, None, 0.0, 0.0, 3.0], name)
    assert with_hole[1] is None
    assert [value for value in with_hole if value is not None] == group_advantages(REWARDS, name)


@pytest.mark.parametrize("rewards", [[0.9] * 4, [0.1 + 0.2, 0.3], [1.0], [None, 0.5, None], [None, None], []])
@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "rloo"])
def test_without_spread_every_advantage_is_exactly_zero(rewards, name):
    assert not has_spread(rewards)
    assert group_advantages(rewards, name) == [None if reward is None else 0.0 for reward in rewards]


@given(st.lists(st.floats(-10, 10), min_size=2, max_size=16), st.sampled_from(["grpo", "dr_grpo", "rloo"]))
def test_advantages_of_a_group_add_up_to_nothing_and_keep_the_order(rewards, name):
    advantages = [value for value in group_advantages(rewards, name) if value is not None]
    assert math.fsum(advantages) == pytest.approx(0.0, abs=1e-6)
    by_reward = [advantage for _, advantage in sorted(zip(rewards, advantages, strict=True))]
    assert all(left <= right + 1e-9 for left, right in itertools.pairwise(by_reward))
