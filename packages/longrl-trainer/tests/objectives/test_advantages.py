"""Advantages against numbers computed by hand, and the rules that hold for every group."""

import itertools
import math
import typing

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from longrl_trainer.config.sections import AdvantageName
from longrl_trainer.objectives.advantages import (
    GroupRewards,
    decoupled_advantages,
    group_advantages,
    has_spread,
    penalised_advantages,
    step_advantages,
)

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


def flat(groups):
    return [value for group in groups for value in group]


def two_groups():
    """Values 1, 0 (three tokens) | 1, 1 (two tokens each): of eight tokens five have 1, so mean 5/8."""
    return [GroupRewards(totals=[1.0, 0.0], lengths=[1, 3]), GroupRewards(totals=[1.0, 1.0], lengths=[2, 2])]


def test_reinforce_plus_plus_compares_all_tokens_of_the_step():
    deviation = math.sqrt((5 * (3 / 8) ** 2 + 3 * (5 / 8) ** 2) / 7)
    good, bad = 0.375 / deviation, -0.625 / deviation
    found = step_advantages(two_groups(), "reinforce_plus_plus")
    assert flat(found) == pytest.approx([good, bad, good, good], rel=1e-5)


def test_its_baseline_form_compares_with_the_group_first():
    # Less the groups' means: 1/2, -1/2 (three tokens) | 0, 0; mean -1/8; squares 0.390625 + 3 * 0.140625 + 4 / 64
    deviation = math.sqrt((0.390625 + 3 * 0.140625 + 4 / 64) / 7)
    expected = [0.625 / deviation, -0.375 / deviation, 0.125 / deviation, 0.125 / deviation]
    assert flat(step_advantages(two_groups(), "reinforce_plus_plus_baseline")) == pytest.approx(expected, rel=1e-5)


def test_gdpo_normalises_every_reward_by_itself():
    # Of two values 1 and 0 the sample deviation is 1/sqrt(2), so each reward gives +-1/sqrt(2), times its weight.
    groups = [
        GroupRewards(totals=[1.0, 0.5], terms=[[1.0, 0.0], [0.0, 1.0]], weights=[1.0, 0.5], lengths=[9, 1]),
        GroupRewards(totals=[1.5, 0.0], terms=[[1.0, 0.0], [20.0, 10.0]], weights=[1.0, 0.5], lengths=[9, 1]),
    ]
    low, high = 0.5 / math.sqrt(2), 1.5 / math.sqrt(2)
    deviation = math.sqrt((2 * low**2 + 2 * high**2) / 3)
    expected = [low / deviation, -low / deviation, high / deviation, -high / deviation]
    assert flat(step_advantages(groups, "gdpo")) == pytest.approx(expected, rel=1e-5)


def test_gdpo_tells_apart_what_a_sum_does_not():
    group = GroupRewards(
        totals=[1.0, 1.0, 1.0], terms=[[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]], weights=[1.0, 1.0], lengths=[1, 1, 1]
    )
    assert flat(step_advantages([group], "grpo")) == [0.0, 0.0, 0.0]
    other = GroupRewards(
        totals=[2.0, 1.0, 1.0], terms=[[1.0, 0.0, 0.0], [1.0, 1.0, 1.0]], weights=[1.0, 1.0], lengths=[1, 1, 1]
    )
    assert flat(step_advantages([group, other], "gdpo")) != flat(step_advantages([group, other], "grpo"))


def test_a_reward_is_normalised_alike_whatever_stands_beside_it():
    """Another reward that can't judge a response takes that response out, and changes nothing for the others."""
    alone = GroupRewards(totals=[1.0, 0.0, 0.5], terms=[[1.0, 0.0, 0.5]], weights=[1.0], lengths=[1, 1, 1])
    (expected,) = step_advantages([alone], "gdpo")
    beside = GroupRewards(
        totals=[1.0, None, 0.5], terms=[[1.0, 0.0, 0.5], [0.0, None, 0.0]], weights=[1.0, 1.0], lengths=[1, 1, 1]
    )
    assert decoupled_advantages(beside) == [
        value if index != 1 else None for index, value in enumerate(decoupled_advantages(alone))
    ]
    assert step_advantages([beside], "gdpo")[0][1] is None
    assert expected[1] is not None


@pytest.mark.parametrize("name", ["reinforce_plus_plus", "reinforce_plus_plus_baseline", "gdpo"])
def test_a_step_without_spread_teaches_nothing(name):
    groups = [
        GroupRewards(totals=[0.3, None, 0.3], terms=[[0.3, None, 0.3]], weights=[1.0], lengths=[4, 2, 3]),
        GroupRewards(totals=[0.1 + 0.2, 0.3], terms=[[0.3, 0.3]], weights=[1.0], lengths=[1, 1]),
    ]
    assert step_advantages(groups, name) == [[0.0, None, 0.0], [0.0, 0.0]]


@pytest.mark.parametrize("name", typing.get_args(AdvantageName))
def test_a_single_judged_response_to_a_question_is_as_if_it_were_not_judged(name):
    """Also where the whole step is compared: others' advantages are what they are without it."""
    alone = GroupRewards(totals=[None, 0.9], terms=[[None, 1.0], [0.0, 0.5]], weights=[0.8, 0.2], lengths=[4, 2])
    lost = GroupRewards(totals=[None, None], terms=[[None, None], [0.0, 0.5]], weights=[0.8, 0.2], lengths=[4, 2])
    whole = GroupRewards(totals=[0.8, 0.0], terms=[[1.0, 0.0], [0.0, 0.0]], weights=[0.8, 0.2], lengths=[3, 5])
    expected = step_advantages([lost, whole], name)
    assert expected[0] == [None, None]
    assert step_advantages([alone, whole], name) == expected
    if name != "gdpo":
        costs = [[torch.tensor([0.1] * length) for length in (4, 2)], [torch.tensor([0.2] * n) for n in (3, 5)]]
        assert penalised_advantages([alone, whole], costs, name)[0] == [None, None]


def test_a_reward_that_is_not_for_a_question_adds_nothing_to_its_responses():
    """As where one reward judges letters and another one numbers, in one step."""
    letters = GroupRewards(totals=[1.0, 0.0], terms=[[1.0, 0.0], [None, None]], weights=[1.0, 1.0], lengths=[1, 1])
    numbers = GroupRewards(totals=[0.0, 1.0], terms=[[None, None], [0.0, 1.0]], weights=[1.0, 1.0], lengths=[1, 1])
    first, second = step_advantages([letters, numbers], "gdpo")
    assert first == pytest.approx(second[::-1])
    assert first[0] > 0.5


def test_with_costs_a_token_is_judged_by_what_follows_it():
    # Returns 1 - 0.3, 1 - 0.2 | 0: mean 0.5, squares 0.04 + 0.09 + 0.25
    groups = [GroupRewards(totals=[1.0, None, 0.0], lengths=[2, 5, 1])]
    costs = [[torch.tensor([0.1, 0.2]), None, torch.tensor([0.0])]]
    ((first, nothing, last),) = penalised_advantages(groups, costs, "reinforce_plus_plus")
    deviation = math.sqrt(0.38 / 2)
    assert nothing is None
    assert first.tolist() == pytest.approx([0.2 / deviation, 0.3 / deviation], rel=1e-5)
    assert last.tolist() == pytest.approx([-0.5 / deviation], rel=1e-5)


def test_with_costs_other_comparisons_lower_the_whole_reward():
    groups = [GroupRewards(totals=[1.0, 1.0], lengths=[2, 1])]
    ((first, second),) = penalised_advantages(groups, [[torch.tensor([0.25, 0.5]), torch.tensor([0.25])]], "dr_grpo")
    assert (first.item(), second.item()) == pytest.approx((-0.25, 0.25))
