"""Importance weights between sampler and trainer, by hand."""

import math

import pytest
import torch

from longrl_trainer.objectives.correction import sampler_weights
from longrl_trainer.rl.step_metrics import TokenStatistics

RATIOS = [1.5, 0.5, 4.0]  # their product is 3


def weights_of(name: str, cap: float):
    sampler = torch.tensor([-1.0, -2.0, -3.0], dtype=torch.float64)
    trainer = sampler + torch.tensor(RATIOS, dtype=torch.float64).log()
    return sampler_weights(trainer.requires_grad_(), sampler, name, cap=cap)


@pytest.mark.parametrize(
    ("name", "cap", "expected", "capped"),
    [
        ("token_truncate", 2.0, [1.5, 0.5, 2.0], [False, False, True]),
        ("token_mask", 2.0, [1.5, 0.5, 0.0], [False, False, True]),
        ("sequence_truncate", 2.0, [2.0], [True]),
        ("sequence_mask", 2.0, [0.0], [True]),
        ("sequence_mask", 3.5, [3.0], [False]),
    ],
)
def test_weights_by_hand(name, cap, expected, capped):
    found = weights_of(name, cap)
    assert found.weights.tolist() == pytest.approx(expected)
    assert found.is_capped.tolist() == capped
    assert not found.weights.requires_grad


def test_without_a_correction_there_are_no_weights():
    assert weights_of("none", 2.0) is None


def test_the_effective_sample_size_is_logged():
    statistics = TokenStatistics()
    assert statistics.effective_sample_fraction is None
    statistics.add_sampler_weights(weights_of("token_truncate", 2.0))
    # (1.5 + 0.5 + 2)^2 / (3 * (2.25 + 0.25 + 4))
    assert statistics.effective_sample_fraction == pytest.approx(16 / 19.5)
    other = TokenStatistics()
    other.add_sampler_weights(weights_of("token_mask", 2.0))
    joined = TokenStatistics.joined([statistics, other])
    assert joined.effective_sample_fraction == pytest.approx(36 / (6 * (6.5 + 2.5)))
    emptied = TokenStatistics()
    emptied.add_sampler_weights(weights_of("sequence_mask", 1.0))
    assert emptied.effective_sample_fraction == 0
    assert math.isfinite(emptied.effective_sample_fraction)
