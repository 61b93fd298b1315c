"""Losses against numbers and gradients computed by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from longrl_trainer.objectives.losses import (
    clipped_loss,
    clipped_weight_loss,
    sequence_clipped_loss,
    soft_gated_loss,
)
from longrl_trainer.objectives.terms import (
    kl_divergence,
    overlong_penalty,
    response_weights,
    weighted_kl_divergence,
)

CLIP = {"clip_low": 0.2, "clip_high": 0.28}


def at_ratios(*ratios: float) -> tuple[torch.Tensor, torch.Tensor]:
    old = torch.full((len(ratios),), -1.5, dtype=torch.float64)
    return (old + torch.tensor(ratios, dtype=torch.float64).log()).requires_grad_(), old


def test_a_good_response_is_clipped_only_above():
    logprobs, old = at_ratios(0.5, 0.9, 1.0, 1.2, 1.5)
    loss = clipped_loss(logprobs, old, 2.0, **CLIP)
    assert loss.losses.tolist() == pytest.approx([-1.0, -1.8, -2.0, -2.4, -2.56])
    assert loss.is_clipped.tolist() == [False, False, False, False, True]
    loss.losses.sum().backward()
    # d(-ratio * A) / d logprob = -ratio * A, and nothing where the clip is active
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == pytest.approx([-1.0, -1.8, -2.0, -2.4, 0.0])


def test_a_bad_response_is_clipped_only_below():
    logprobs, old = at_ratios(0.5, 0.9, 1.0, 1.5)
    loss = clipped_loss(logprobs, old, -2.0, **CLIP)
    assert loss.losses.tolist() == pytest.approx([1.6, 1.8, 2.0, 3.0])
    assert loss.is_clipped.tolist() == [True, False, False, False]
    loss.losses.sum().backward()
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == pytest.approx([0.0, 1.8, 2.0, 3.0])


@pytest.mark.parametrize(
    "loss",
    [
        lambda *values: clipped_loss(*values, **CLIP),
        lambda *values: sequence_clipped_loss(*values, **CLIP),
        lambda *values: clipped_weight_loss(*values, **CLIP),
        lambda *values: soft_gated_loss(*values, temperature_positive=1.0, temperature_negative=1.05),
    ],
    ids=["clipped", "gspo", "cispo", "sapo"],
)
@pytest.mark.parametrize("advantage", [0.7, -0.7])
def test_the_first_update_has_the_policy_gradient(loss, advantage):
    logprobs = torch.tensor([-0.1, -2.0], dtype=torch.float64, requires_grad=True)
    loss(logprobs, logprobs.detach(), advantage).losses.sum().backward()
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == pytest.approx([-advantage, -advantage])


def test_gspo_has_one_ratio_the_geometric_mean():
    logprobs, old = at_ratios(2.0, 0.5, 1.0, 1.1**4)  # their product is 1.1^4, so the mean is 1.1
    loss = sequence_clipped_loss(logprobs, old, 2.0, **CLIP)
    assert loss.losses.tolist() == pytest.approx([-2.2] * 4)
    assert not loss.is_clipped.any()
    (loss.losses.sum() / 4).backward()
    # d(-s A) / d logprob_t = -s A / R
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == pytest.approx([-0.55] * 4)


def test_gspo_clips_all_tokens_or_none():
    logprobs, old = at_ratios(4.0, 0.9, 1.0)
    loss = sequence_clipped_loss(logprobs, old, 1.0, **CLIP)
    assert loss.is_clipped.tolist() == [True] * 3
    assert loss.losses.tolist() == pytest.approx([-1.28] * 3)
    loss.losses.sum().backward()
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == [0.0] * 3


def test_cispo_bounds_the_weight_and_keeps_every_gradient():
    logprobs, old = at_ratios(0.01, 1.0, 4.0, 9.0)
    loss = clipped_weight_loss(logprobs, old, 2.0, clip_low=1.0, clip_high=4.0)
    assert loss.is_clipped.tolist() == [False, False, False, True]
    loss.losses.sum().backward()
    # d(-w A logprob) / d logprob = -w A, with w at most 5
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == pytest.approx([-0.02, -2.0, -8.0, -10.0])
    weights = torch.tensor([0.01, 1.0, 4.0, 5.0], dtype=torch.float64)
    assert loss.losses.tolist() == pytest.approx((-weights * 2.0 * logprobs.detach()).tolist())


@pytest.mark.parametrize(("advantage", "temperature"), [(2.0, 1.5), (-2.0, 3.0)])
def test_sapo_fades_gradients_by_the_sign_of_the_advantage(advantage, temperature):
    logprobs, old = at_ratios(0.5, 1.0, 3.0)
    loss = soft_gated_loss(logprobs, old, advantage, temperature_positive=1.5, temperature_negative=3.0)
    gates = [4 / temperature / (1 + math.exp(-temperature * (ratio - 1))) for ratio in (0.5, 1.0, 3.0)]
    assert loss.losses.tolist() == pytest.approx([-gate * advantage for gate in gates])
    loss.losses.sum().backward()
    # d f / d logprob = 4 p (1 - p) ratio, where p is the sigmoid
    shares = [gate * temperature / 4 for gate in gates]
    slopes = [4 * p * (1 - p) * ratio for p, ratio in zip(shares, (0.5, 1.0, 3.0), strict=True)]
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == pytest.approx([-slope * advantage for slope in slopes])


def test_every_token_may_have_an_advantage_of_its_own():
    advantages = torch.tensor([1.0, -1.0, 0.0], dtype=torch.float64)
    for loss in (
        lambda *values: clipped_loss(*values, **CLIP),
        lambda *values: clipped_weight_loss(*values, **CLIP),
        lambda *values: soft_gated_loss(*values, temperature_positive=1.0, temperature_negative=2.0),
    ):
        logprobs, old = at_ratios(1.5, 0.5, 1.2)
        logprobs = logprobs.detach()
        together = loss(logprobs, old, advantages).losses
        apart = [loss(logprobs, old, advantage).losses[place] for place, advantage in enumerate((1.0, -1.0, 0.0))]
        assert together.tolist() == pytest.approx([float(value) for value in apart])


def test_k3_by_hand():
    logprobs = torch.tensor([math.log(0.5), math.log(0.25)], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([math.log(0.25), math.log(0.5)], dtype=torch.float64)
    kl = kl_divergence(logprobs, reference, "k3")
    # ratio 1/2: 0.5 + ln 2 - 1; ratio 2: 2 - ln 2 - 1
    assert kl.tolist() == pytest.approx([math.log(2) - 0.5, 1 - math.log(2)])
    kl.sum().backward()
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == pytest.approx([0.5, -1.0])  # 1 - ratio


def test_k3_is_unbiased():
    policy = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
    reference = torch.tensor([0.4, 0.4, 0.2], dtype=torch.float64)
    expected = (policy * (policy / reference).log()).sum()
    assert (policy * kl_divergence(policy.log(), reference.log(), "k3")).sum().item() == pytest.approx(expected.item())


@pytest.mark.parametrize(
    ("estimator", "values", "slopes"), [("k1", [0.5, -2.0], [1, 1]), ("k2", [0.125, 2], [0.5, -2])]
)
def test_k1_and_k2_by_hand(estimator, values, slopes):
    logprobs = torch.tensor([-1.0, -3.0], dtype=torch.float64, requires_grad=True)
    kl = kl_divergence(logprobs, torch.tensor([-1.5, -1.0], dtype=torch.float64), estimator)
    assert kl.tolist() == pytest.approx(values)
    kl.sum().backward()
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == pytest.approx(slopes)


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_times_the_ratio_the_gradient_is_that_of_the_divergence(estimator):
    """Averaged over the old policy's samples, of which the policy is no longer the source."""
    scores = torch.tensor([0.3, -0.8, 1.1], dtype=torch.float64, requires_grad=True)
    logprobs = torch.log_softmax(scores, 0)
    old = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
    reference = torch.tensor([0.4, 0.4, 0.2], dtype=torch.float64)
    estimate = (old * weighted_kl_divergence(logprobs, old.log(), reference.log(), estimator)).sum()
    exact = (logprobs.exp() * (logprobs - reference.log())).sum()
    assert estimate.item() == pytest.approx(exact.item())
    (found,) = torch.autograd.grad(estimate, scores, retain_graph=True)
    (expected,) = torch.autograd.grad(exact, scores, retain_graph=True)
    assert found.tolist() == pytest.approx(expected.tolist())
    (plain,) = torch.autograd.grad(
        (old * kl_divergence(logprobs, reference.log(), estimator)).sum(), scores, allow_unused=True
    )
    assert plain.tolist() != pytest.approx(expected.tolist())


@pytest.mark.parametrize(("num_tokens", "penalty"), [(1, 0), (60, 0), (70, -0.25), (90, -0.75), (100, -1), (120, -1)])
def test_the_penalty_of_a_long_response_rises_within_the_buffer(num_tokens, penalty):
    assert overlong_penalty(num_tokens, max_tokens=100, buffer_tokens=40) == pytest.approx(penalty)


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
