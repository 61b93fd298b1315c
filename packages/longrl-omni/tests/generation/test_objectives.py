"""The objectives of both directions: numbers by hand, gradients that must vanish, and optima in closed form.

Shape legend: B samples, L elements of a sample.
"""

import math

import pytest
import torch
from torch import Tensor

from longrl_omni.generation.objectives.forward import NoisedSamples, awm_loss, dgpo_loss, nft_loss
from longrl_omni.generation.objectives.reverse import clipped_loss, masked_loss, reverse_loss
from longrl_omni.generation.sampling.trajectories import TakenStep
from longrl_omni.generation.sampling.transitions import Transition, step

DOUBLE = torch.float64


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=DOUBLE)


def test_clipped_losses_by_hand() -> None:
    found = clipped_loss(tensor(math.log(1.5), math.log(0.5), math.log(1.5), 0.0), tensor(1, 1, -1, 2), clip=0.2)
    torch.testing.assert_close(found.losses, tensor(-1.2, -0.5, 1.5, -2.0))
    assert found.is_cut.tolist() == [True, False, False, False]


def taken_and_new(shift: float) -> tuple[TakenStep, Transition, Tensor]:
    """A step that was drawn, the policy after its velocity was shifted, and that shift."""
    source = torch.Generator().manual_seed(0)
    latents_BL, velocity_BL, noise_BL = torch.randn(3, 5, 16, generator=source, dtype=DOUBLE)
    old = step(latents_BL, velocity_BL, 0.6, 0.5, name="flow", noise=0.7)
    next_BL = old.draw(noise_BL)
    taken = TakenStep(next_latents=next_BL, old_log_density=old.log_density(next_BL, "mean"), old_mean=old.mean)
    moved = torch.full_like(velocity_BL, shift).requires_grad_()
    return taken, step(latents_BL, velocity_BL + moved, 0.6, 0.5, name="flow", noise=0.7), noise_BL


def test_before_an_update_every_ratio_is_one_and_the_gradient_is_that_of_the_log_density() -> None:
    advantages_B = tensor(1, -1, 2, 0, 0.5)
    for name in ("clipped", "dppo"):
        taken, new, _ = taken_and_new(0.0)
        found = reverse_loss(name, new, taken, advantages_B, clip=1e-4, reduction="mean")
        assert torch.equal(found.ratios, torch.ones_like(found.ratios))
        torch.testing.assert_close(found.losses, -advantages_B)


def test_guard_has_no_drift() -> None:
    """Its log-ratio is mean((new mean - old mean) z), moved from 0 by chance alone; the plain one is below."""
    taken, new, noise_BL = taken_and_new(0.3)
    found = reverse_loss("guard", new, taken, torch.ones(5, dtype=DOUBLE), clip=10.0, reduction="mean")
    expected_B = ((new.mean - taken.old_mean) * noise_BL).mean(dim=1).detach()
    torch.testing.assert_close(found.ratios.log(), expected_B)
    torch.testing.assert_close(found.losses.detach(), -expected_B.exp() / new.decrease)
    plain_B = new.log_density(taken.next_latents, "mean") - taken.old_log_density
    drift_B = (new.mean - taken.old_mean).square().mean(dim=1) / (2 * new.deviation**2)
    torch.testing.assert_close(plain_B, expected_B / new.deviation - drift_B)


def test_the_divergence_mask_has_the_published_truth_table() -> None:
    cases = [  # advantage, ratio, divergence is too large: whether the gradient stops
        (1, 1.1, True, True),
        (1, 0.9, True, False),
        (-1, 1.1, True, False),
        (-1, 0.9, True, True),
        (1, 1.1, False, False),
        (-1, 0.9, False, False),
        (0, 1.1, True, False),
    ]
    log_ratios_B = torch.tensor([math.log(ratio) for _, ratio, _, _ in cases], dtype=DOUBLE, requires_grad=True)
    divergence_B = tensor(*(2e-5 if too_large else 0.5e-5 for _, _, too_large, _ in cases))
    found = masked_loss(
        log_ratios_B, divergence_B, tensor(*(advantage for advantage, *_ in cases)), most_divergence=1e-5
    )
    assert found.is_cut.tolist() == [stops for *_, stops in cases]
    (gradient_B,) = torch.autograd.grad(found.losses.sum(), log_ratios_B)
    for gradient, (advantage, ratio, _, stops) in zip(gradient_B.tolist(), cases, strict=True):
        assert gradient == pytest.approx(0.0 if stops else -advantage * ratio)


def noised_samples(num_samples: int = 4, num_elements: int = 6) -> NoisedSamples:
    source = torch.Generator().manual_seed(2)
    clean_BL, noise_BL = torch.randn(2, num_samples, num_elements, generator=source, dtype=DOUBLE)
    return NoisedSamples(clean=clean_BL, noise=noise_BL, levels=tensor(0.2, 0.4, 0.6, 0.8)[:num_samples])


def test_noised_samples_lead_back_by_their_target() -> None:
    noised = noised_samples()
    back_BL = noised.latents - noised.levels[:, None] * noised.target
    torch.testing.assert_close(back_BL, noised.clean)
    assert noised.error_of(noised.target).tolist() == [0, 0, 0, 0]


def test_nft_by_hand() -> None:
    noised = NoisedSamples(clean=tensor(0.0)[None], noise=tensor(1.0)[None], levels=tensor(0.5))
    # target 1, old 0.5, new 0.8, b = 1: branches 0.8 and 0.2, errors in x0 0.1 and 0.4, each divided by itself
    found = nft_loss(noised, tensor(0.8)[None], tensor(0.5)[None], tensor(2.5), strength=1.0, most_advantage=5.0)
    assert found.losses.item() == pytest.approx(0.75 * 0.1 + 0.25 * 0.4)


def test_nft_has_no_gradient_where_samples_are_neither_good_nor_bad_and_the_policy_is_the_old_one() -> None:
    noised = noised_samples()
    old_BL = torch.randn(4, 6, generator=torch.Generator().manual_seed(5), dtype=DOUBLE)
    velocity_BL = old_BL.clone().requires_grad_()
    for advantages_B, is_zero in ((tensor(0, 0, 0, 0), True), (tensor(1, 0, 0, 0), False)):
        found = nft_loss(noised, velocity_BL, old_BL, advantages_B, strength=0.1, most_advantage=5.0)
        (gradient_BL,) = torch.autograd.grad(found.losses.sum(), velocity_BL)
        assert bool((gradient_BL == 0.0).all()) is is_zero


def test_nft_is_least_at_the_derived_policy() -> None:
    """For one noised point with several clean samples: v - v_old = E[(2 q - 1)(u - v_old)] / b.

    With one magnitude of all errors, the weights of the branches are equal, and the published optimum is exact.
    """
    clean = tensor(1.0, -1.0, 1.0, -1.0)[:, None]
    level, strength = 0.5, 0.5
    latents = tensor(0.0, 0.0, 0.0, 0.0)[:, None]
    noised = NoisedSamples(
        clean=clean, noise=(latents - (1 - level) * clean) / level, levels=torch.full((4,), level, dtype=DOUBLE)
    )
    advantages = tensor(5.0, -5.0, 5.0, 0.0)
    change = torch.zeros((), dtype=DOUBLE, requires_grad=True)
    old = torch.zeros(4, 1, dtype=DOUBLE)
    best = ((advantages / 5.0)[:, None] * noised.target).mean().item() / strength

    def loss_at(value: float) -> float:
        preference = 0.5 + 0.5 * (advantages / 5.0)
        errors = [(old + sign * strength * value - noised.target).square().mean(dim=1) for sign in (1.0, -1.0)]
        return float((preference * errors[0] + (1 - preference) * errors[1]).mean())

    assert loss_at(best) < min(loss_at(best + 0.01), loss_at(best - 0.01))
    found = nft_loss(noised, old + change, old, advantages, strength=strength, most_advantage=5.0)
    (gradient,) = torch.autograd.grad(found.losses.mean(), change)
    assert gradient.item() * best < 0  # downhill leads there


def test_awm_begins_as_the_loss_of_pretraining_by_advantage() -> None:
    noised, advantages_B = noised_samples(), tensor(1.0, -0.5, 0.0, 2.0)
    velocity_BL = torch.randn(4, 6, generator=torch.Generator().manual_seed(5), dtype=DOUBLE).requires_grad_()
    found = awm_loss(noised, velocity_BL, velocity_BL.detach(), advantages_B, clip=1e-4)
    assert found.ratios.tolist() == [1, 1, 1, 1]
    (gradient_BL,) = torch.autograd.grad(found.losses.sum(), velocity_BL)
    (expected_BL,) = torch.autograd.grad((advantages_B * noised.error_of(velocity_BL)).sum(), velocity_BL)
    torch.testing.assert_close(gradient_BL, expected_BL)


def test_awm_by_hand() -> None:
    noised = NoisedSamples(clean=tensor(0.0)[None], noise=tensor(1.0)[None], levels=tensor(0.5))
    # errors: old 0.25, new 0.04, log-ratio 0.21
    found = awm_loss(noised, tensor(0.8)[None], tensor(0.5)[None], tensor(-2.0), clip=0.1)
    assert found.losses.item() == pytest.approx(2.0 * math.exp(0.21))
    found = awm_loss(noised, tensor(0.8)[None], tensor(0.5)[None], tensor(2.0), clip=0.1)
    assert found.losses.item() == pytest.approx(-2.0 * 1.1)
    assert found.is_cut.item()


def test_dgpo_by_hand_and_as_a_weighted_loss() -> None:
    noised, advantages_B = noised_samples(), tensor(1.0, -1.0, 0.5, -0.5)
    source = torch.Generator().manual_seed(7)
    velocity_BL = torch.randn(4, 6, generator=source, dtype=DOUBLE).requires_grad_()
    reference_BL = torch.randn(4, 6, generator=source, dtype=DOUBLE)
    found = dgpo_loss(noised, velocity_BL, reference_BL, advantages_B, group_size=2, strength=3.0)
    gains = (advantages_B * (noised.error_of(velocity_BL) - noised.error_of(reference_BL))).detach()
    preferences = [1.5 * float(gains[:2].sum()), 1.5 * float(gains[2:].sum())]
    expected = [math.log1p(math.exp(preference)) for preference in preferences]
    torch.testing.assert_close(found.losses.detach(), tensor(expected[0], expected[0], expected[1], expected[1]))
    (gradient_BL,) = torch.autograd.grad(found.losses.mean(), velocity_BL)
    weights_B = tensor(*(1 / (1 + math.exp(-preference)) for preference in preferences)).repeat_interleave(2)
    weighted = (3.0 * weights_B * advantages_B * noised.error_of(velocity_BL)).mean()
    torch.testing.assert_close(gradient_BL, torch.autograd.grad(weighted, velocity_BL)[0])
