"""Advantages of samples: by hand, for both scopes of the deviation and both ways of mixing rewards."""

from statistics import stdev

import pytest

from longrl_omni.generation.comparison import WeightedTerm, compare_samples

VALUES = [1.0, 0.0, 0.5, 0.5]


def compare(values: list[float | None], **changes: object) -> list[float | None]:
    options = {"group_size": 2, "scope": "group", "mixing": "sum"} | changes
    return compare_samples([WeightedTerm(values=values, weight=1.0)], values, **options)  # type: ignore[arg-type]


def test_the_deviation_is_that_of_the_group_or_of_the_step() -> None:
    assert compare(VALUES) == pytest.approx([0.5 / stdev([1, 0]), -0.5 / stdev([1, 0]), 0.0, 0.0], rel=1e-5)
    whole = stdev(VALUES)
    assert compare(VALUES, scope="step") == pytest.approx([0.5 / whole, -0.5 / whole, 0.0, 0.0], rel=1e-5)


def test_rewards_are_summed_or_compared_each_by_itself() -> None:
    terms = [WeightedTerm(values=[1.0, 0.0], weight=1.0), WeightedTerm(values=[0.0, 0.1], weight=2.0)]
    totals = [1.0, 0.2]
    summed = compare_samples(terms, totals, group_size=2, scope="group", mixing="sum")
    each = compare_samples(terms, totals, group_size=2, scope="group", mixing="each")
    unit = 0.5 / stdev([0, 1])
    assert summed == pytest.approx([unit, -unit], rel=1e-4)
    assert each == pytest.approx([unit - 2 * unit, -unit + 2 * unit], rel=1e-4)


def test_what_was_not_judged_has_no_advantage_and_a_single_sample_none_to_compare_with() -> None:
    for scope in ("group", "step"):
        found = compare([1.0, None, 1.0, 0.0], scope=scope)
        assert found[:2] == [None, None]
        assert found[2] == pytest.approx(-(found[3] or 0.0))
    terms = [WeightedTerm(values=[1.0, 0.0, 0.5], weight=1.0), WeightedTerm(values=[None, 0.0, 1.0], weight=1.0)]
    each = compare_samples(terms, [None, 0.0, 1.5], group_size=3, scope="group", mixing="each")
    assert each[0] is None
    assert each[1] == pytest.approx(-(each[2] or 0.0))


def test_equal_rewards_teach_nothing() -> None:
    assert compare([0.7] * 4) == [0.0] * 4
    assert compare([0.7] * 4, scope="step") == [0.0] * 4
