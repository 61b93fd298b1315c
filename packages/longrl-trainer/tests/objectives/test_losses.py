"""Losses against numbers and gradients computed by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from longrl_trainer.objectives.clipped import ClippedLoss
from longrl_trainer.objectives.terms import kl_divergence_k3, response_weights

LOSS = ClippedLoss(clip_low=0.2, clip_high=0.28)


def at_ratios(*ratios: float) -> tuple[torch.Tensor, torch.Tensor]:
    old = torch.full((len(ratios),), -1.5, dtype=torch.float64)
    return (old + torch.tensor(ratios, dtype=torch.float64).log()).requires_grad_(), old


def test_a_good_response_is_clipped_only_above():
    logprobs, old = at_ratios(0.5, 0.9, 1.0, 1.2, 1.5)
    loss = LOSS(logprobs, old, 2.0)
    assert loss.losses.tolist() == pytest.approx([-1.0, -1.8, -2.0, -2.4, -2.56])
    assert loss.is_clipped.tolist() == [False, False, False, False, True]
    loss.losses.sum().backward()
    # d(-ratio * A) / d logprob = -ratio * A, and nothing where the clip is active
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == pytest.approx([-1.0, -1.8, -2.0, -2.4, 0.0])


def test_a_bad_response_is_clipped_only_below():
    logprobs, old = at_ratios(0.5, 0.9, 1.0, 1.5)
    loss = LOSS(logprobs, old, -2.0)
    assert loss.losses.tolist() == pytest.approx([1.6, 1.8, 2.0, 3.0])
    assert loss.is_clipped.tolist() == [True, False, False, False]
    loss.losses.sum().backward()
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == pytest.approx([0.0, 1.8, 2.0, 3.0])


def test_the_first_update_has_the_policy_gradient():
    logprobs = torch.tensor([-0.1, -2.0], dtype=torch.float64, requires_grad=True)
    LOSS(logprobs, logprobs.detach(), 0.7).losses.sum().backward()
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == pytest.approx([-0.7, -0.7])


def test_k3_by_hand():
    logprobs = torch.tensor([math.log(0.5), math.log(0.25)], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([math.log(0.25), math.log(0.5)], dtype=torch.float64)
    kl = kl_divergence_k3(logprobs, reference)
    # ratio 1/2: 0.5 + ln 2 - 1; ratio 2: 2 - ln 2 - 1
    assert kl.tolist() == pytest.approx([math.log(2) - 0.5, 1 - math.log(2)])
    kl.sum().backward()
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == pytest.approx([0.5, -1.0])  # 1 - ratio


def test_k3_is_unbiased():
    policy = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
    reference = torch.tensor([0.4, 0.4, 0.2], dtype=torch.float64)
    expected = (policy * (policy / reference).log()).sum()
    assert (policy * kl_divergence_k3(policy.log(), reference.log())).sum().item() == pytest.approx(expected.item())


@pytest.mark.parametrize(
    ("aggregation", "expected"),
    [("token", [1 / 12] * 3), ("sequence", [1 / 6, 1 / 12, 1 / 18]), ("constant", [1 / 30] * 3)],
)
def test_weights_by_hand(aggregation, expected):
    assert response_weights([2, 4, 6], aggregation, max_response_tokens=10) == pytest.approx(expected)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=9), st.sampled_from(["token", "sequence"]))
def test_a_loss_of_one_everywhere_stays_one(lengths, aggregation):
    weights = response_weights(lengths, aggregation, max_response_tokens=50)
    assert math.fsum(weight * length for weight, length in zip(weights, lengths, strict=True)) == pytest.approx(1.0)


def test_a_long_response_counts_most_by_tokens_and_the_same_by_sequences():
    lengths = [10, 30]
    token = response_weights(lengths, "token", max_response_tokens=40)
    sequence = response_weights(lengths, "sequence", max_response_tokens=40)
    assert [weight * length for weight, length in zip(token, lengths, strict=True)] == pytest.approx([0.25, 0.75])
    assert [weight * length for weight, length in zip(sequence, lengths, strict=True)] == pytest.approx([0.5, 0.5])
