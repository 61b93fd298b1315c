"""Standard errors, intervals and tests, by hand."""

import math

import numpy as np
import pytest

from longrl_trainer.evaluation.scoring.statistics import bootstrap_interval, clustered_standard_error, mcnemar_p_value


def test_the_standard_error_by_hand():
    # clusters (1, 1), (0, 0): mean 0.5, deviations +1 and -1
    assert clustered_standard_error([1, 1, 0, 0], ["a", "a", "b", "b"]) == pytest.approx(math.sqrt(2) / 4)
    # one value per cluster: sqrt(p (1 - p) / n)
    assert clustered_standard_error([1, 0, 0, 0], list("abcd")) == pytest.approx(math.sqrt(0.25 * 0.75 / 4))
    # within a cluster errors that cancel each other do not count
    assert clustered_standard_error([1, 0, 1, 0], ["a", "a", "b", "b"]) == 0


def test_mcnemars_test_by_hand():
    assert mcnemar_p_value(0, 0) == 1.0
    assert mcnemar_p_value(0, 5) == 2 / 32
    assert mcnemar_p_value(5, 0) == 2 / 32
    assert mcnemar_p_value(1, 7) == pytest.approx(2 * (1 + 8) / 256)
    assert mcnemar_p_value(4, 4) == 1.0
    assert 0 < mcnemar_p_value(4800, 5200) < 1e-4  # large numbers too


def test_the_interval_of_independent_questions_is_the_normal_one():
    generator = np.random.default_rng(0)
    differences = generator.choice([-1.0, 0.0, 1.0], size=400, p=[0.2, 0.5, 0.3]).tolist()
    interval = bootstrap_interval(differences, [str(place) for place in range(400)])
    center, spread = np.mean(differences), 1.96 * np.std(differences) / 20
    assert interval.low == pytest.approx(center - spread, abs=0.01)
    assert interval.high == pytest.approx(center + spread, abs=0.01)


def test_questions_about_one_video_are_resampled_together():
    differences = [1.0] * 50 + [-1.0] * 50
    alone = bootstrap_interval(differences, [str(place) for place in range(100)])
    together = bootstrap_interval(differences, ["a"] * 50 + ["b"] * 50)
    assert (together.low, together.high) == (-1.0, 1.0)
    assert alone.high < 0.25
    # of two unequal videos, the same one twice gives its own mean
    unequal = bootstrap_interval([1.0] * 9 + [-1.0], ["a"] * 9 + ["b"])
    assert (unequal.low, unequal.high) == (-1.0, 1.0)
