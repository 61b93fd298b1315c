"""One step of sampling: closed forms, numbers by hand, and the marginals that an SDE shares with its ODE.

Shape legend: B samples, L elements of a sample.
"""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from longrl_omni.generation.config.algorithms import NoiseName
from longrl_omni.generation.policies.schedules import check_levels, shifted_levels
from longrl_omni.generation.sampling.transitions import (
    deviation_of,
    mean_divergence,
    reduce_elements,
    step,
)
from longrl_trainer.errors import TrainerUsageError

STOCHASTIC: tuple[tuple[NoiseName, float], ...] = (("flow", 0.7), ("dance", 0.3), ("cps", 0.8), ("ddim", 1.0))


def gaussian_velocity(latents_BL: Tensor, level: float, *, mean: float, deviation: float) -> Tensor:
    """The exact velocity where clean samples are normal: E[noise - clean | latents]."""
    kept = 1.0 - level
    variance = kept**2 * deviation**2 + level**2
    offset_BL = latents_BL - kept * mean
    clean_BL = mean + kept * deviation**2 / variance * offset_BL
    noise_BL = level / variance * offset_BL
    return noise_BL - clean_BL


def sample_gaussian(name: NoiseName, noise: float, num_steps: int, num_samples: int = 20_000) -> Tensor:
    source = torch.Generator().manual_seed(3)
    latents_BL = torch.randn(num_samples, 1, generator=source, dtype=torch.float64)
    for level, next_level in pairwise(shifted_levels(num_steps, shift=1.0)):
        velocity_BL = gaussian_velocity(latents_BL, level, mean=0.5, deviation=0.3)
        drawn = step(latents_BL, velocity_BL, level, next_level, name=name, noise=noise)
        latents_BL = drawn.draw(torch.randn(latents_BL.shape, generator=source, dtype=torch.float64))
    return latents_BL


@pytest.mark.parametrize(("name", "noise"), STOCHASTIC)
def test_without_noise_every_step_is_that_of_the_ode(name: NoiseName, noise: float) -> None:
    latents_BL, velocity_BL = torch.randn(2, 3, 4, dtype=torch.float64), torch.randn(2, 3, 4, dtype=torch.float64)
    quiet = step(latents_BL, velocity_BL, 0.6, 0.5, name=name, noise=0.0)
    assert quiet.deviation == 0.0
    torch.testing.assert_close(quiet.mean, latents_BL - 0.1 * velocity_BL, rtol=0, atol=1e-12)
    # and nearly so with nearly no noise, which takes the other branch
    nearly = step(latents_BL, velocity_BL, 0.6, 0.5, name=name, noise=1e-7)
    torch.testing.assert_close(nearly.mean, quiet.mean, rtol=0, atol=1e-9)
    assert noise > 0


def test_means_and_deviations_by_hand() -> None:
    x, v = torch.tensor([[2.0]], dtype=torch.float64), torch.tensor([[1.0]], dtype=torch.float64)
    # s = 0.5, s' = 0.3: clean 1.5, noise 2.5
    flow = step(x, v, 0.5, 0.3, name="flow", noise=0.6)
    assert flow.deviation == pytest.approx(0.6 * math.sqrt(0.2))
    assert flow.mean.item() == pytest.approx(2.0 - 0.2 * 1.0 - 0.36 * 0.2 / (2 * 0.5) * 2.5)
    dance = step(x, v, 0.5, 0.3, name="dance", noise=0.5)
    assert dance.deviation == pytest.approx(0.5 * math.sqrt(0.2))
    assert dance.mean.item() == pytest.approx(1.8 - 0.25 * 0.2 / (2 * 0.5) * 2.5)
    cps = step(x, v, 0.5, 0.3, name="cps", noise=0.5)
    assert cps.deviation == pytest.approx(0.3 * math.sin(math.pi / 4))
    assert cps.mean.item() == pytest.approx(0.7 * 1.5 + 0.3 * math.cos(math.pi / 4) * 2.5)
    ddim = step(x, v, 0.5, 0.3, name="ddim", noise=1.0)
    assert ddim.deviation == pytest.approx(0.3 * math.sqrt(1 - (0.5 * 0.3 / (0.7 * 0.5)) ** 2))
    assert ddim.mean.item() == pytest.approx(0.7 * 1.5 + math.sqrt(0.09 - ddim.deviation**2) * 2.5)


def test_ddim_is_the_ancestral_step_of_a_noise_model() -> None:
    """In the coordinates of alpha^2 + sigma^2 = 1: DDPM's posterior (arXiv 2006.11239, eq. 7)."""
    bar, next_bar = 0.4, 0.7
    clean, noise = 0.3, -0.8
    x = math.sqrt(bar) * clean + math.sqrt(1 - bar) * noise
    beta = 1 - bar / next_bar
    mean = math.sqrt(next_bar) * beta / (1 - bar) * clean + math.sqrt(bar / next_bar) * (1 - next_bar) / (1 - bar) * x
    deviation = math.sqrt((1 - next_bar) / (1 - bar) * beta)

    scale, next_scale = (math.sqrt(b) + math.sqrt(1 - b) for b in (bar, next_bar))
    found = step(
        torch.tensor([[x / scale]], dtype=torch.float64),
        torch.tensor([[noise - clean]], dtype=torch.float64),
        math.sqrt(1 - bar) / scale,
        math.sqrt(1 - next_bar) / next_scale,
        name="ddim",
        noise=1.0,
    )
    assert found.mean.item() * next_scale == pytest.approx(mean)
    assert found.deviation * next_scale == pytest.approx(deviation)


def test_the_first_step_of_flow_has_the_noise_scale_as_its_deviation() -> None:
    assert deviation_of(1.0, 0.9, name="flow", noise=0.7) == pytest.approx(0.7)


def test_a_schedule_that_begins_just_below_noise_has_no_other_first_step() -> None:
    """Wan's begins at 1 - 1e-6, where the plain formula gives 100 times as much noise as there are latents."""
    for name, noise in STOCHASTIC:
        at_noise, below = (deviation_of(level, 0.9, name=name, noise=noise) for level in (1.0, 1.0 - 1e-6))
        assert below == pytest.approx(at_noise, rel=1e-4)


@pytest.mark.parametrize(("name", "noise"), STOCHASTIC)
def test_the_last_step_has_no_noise(name: NoiseName, noise: float) -> None:
    assert deviation_of(0.1, 0.0, name=name, noise=noise) == 0.0
    latents_BL = torch.ones(1, 2)
    last = step(latents_BL, latents_BL, 0.1, 0.0, name=name, noise=noise)
    with pytest.raises(ValueError, match="no density"):
        last.log_density(latents_BL, "mean")


@pytest.mark.parametrize(("name", "noise"), [("ode", 0.0), ("flow", 0.7), ("dance", 0.3), ("ddim", 1.0)])
def test_samples_of_an_exact_velocity_approach_the_distribution_of_the_data(name: NoiseName, noise: float) -> None:
    errors: list[float] = []
    for num_steps in (10, 40, 200):
        clean_BL = sample_gaussian(name, noise, num_steps)
        assert clean_BL.mean().item() == pytest.approx(0.5, abs=0.02)
        errors.append(abs(clean_BL.std().item() - 0.3))
    assert errors[2] < 0.008
    assert errors[2] < errors[1] < errors[0]


def test_cps_keeps_the_level_of_noise_instead_of_the_distribution() -> None:
    """The coefficients of estimated and fresh noise add up to the next level, so its samples are less spread."""
    for level, next_level in pairwise(shifted_levels(8, shift=3.0)):
        if next_level:
            deviation = deviation_of(level, next_level, name="cps", noise=0.8)
            kept = next_level * math.cos(0.4 * math.pi)
            assert math.hypot(kept, deviation) == pytest.approx(next_level)
    assert sample_gaussian("cps", 0.8, 200).std().item() < 0.28


def test_log_densities_by_hand() -> None:
    x, v = torch.zeros(2, 3, dtype=torch.float64), torch.zeros(2, 3, dtype=torch.float64)
    drawn_BL = torch.tensor([[0.1, 0.2, -0.3], [0.0, 0.0, 0.0]], dtype=torch.float64)
    flow = step(x, v, 0.5, 0.3, name="flow", noise=0.6)
    expected_BL = torch.distributions.Normal(flow.mean, flow.deviation).log_prob(drawn_BL)
    torch.testing.assert_close(flow.log_density(drawn_BL, "sum"), expected_BL.sum(dim=1))
    torch.testing.assert_close(flow.log_density(drawn_BL, "mean"), expected_BL.mean(dim=1))
    cps = step(x, v, 0.5, 0.3, name="cps", noise=0.5)
    torch.testing.assert_close(cps.log_density(drawn_BL, "sum"), torch.tensor([-0.14, 0.0], dtype=torch.float64))


def test_the_divergence_is_that_of_two_normal_distributions() -> None:
    means = torch.tensor([[0.1, 0.4]], dtype=torch.float64), torch.tensor([[0.3, -0.2]], dtype=torch.float64)
    expected = torch.distributions.kl_divergence(
        torch.distributions.Normal(means[0], 0.7), torch.distributions.Normal(means[1], 0.7)
    )
    torch.testing.assert_close(mean_divergence(*means, 0.7, "sum"), expected.sum(dim=1))
    torch.testing.assert_close(mean_divergence(*means, 0.7, "mean"), expected.mean(dim=1))


@pytest.mark.parametrize(("name", "noise"), STOCHASTIC)
@pytest.mark.parametrize("num_elements", [1, 64])
def test_the_policy_gradient_is_the_analytic_derivative(name: NoiseName, noise: float, num_elements: int) -> None:
    """Of E[reward] by a shift of the velocity, where the reward is the mean of the next latents: -D exactly.

    The mean reduction gives 1 / number of elements of it.
    """
    source = torch.Generator().manual_seed(1)
    shift = torch.zeros((), dtype=torch.float64, requires_grad=True)
    latents_BL = torch.full((40_000, num_elements), 0.2, dtype=torch.float64)
    drawn = step(latents_BL, shift.expand_as(latents_BL), 0.6, 0.5, name=name, noise=noise)
    next_BL = drawn.draw(torch.randn(latents_BL.shape, generator=source, dtype=torch.float64)).detach()
    # Of `cps` the density has no weight, which is the one of unit deviation but for a factor of 1/2.
    weight = 1.0 if drawn.is_weighted else 1.0 / (2 * drawn.deviation**2)
    rewards_B = next_BL.mean(dim=1)
    (slope,) = torch.autograd.grad(drawn.mean[0].mean(), shift, retain_graph=True)
    losses_B = weight * drawn.log_density(next_BL, "sum") * (rewards_B - rewards_B.mean())
    (gradient,) = torch.autograd.grad(losses_B.mean(), shift, retain_graph=True)
    assert gradient.item() == pytest.approx(slope.item(), rel=0.05)
    losses_B = weight * drawn.log_density(next_BL, "mean") * (rewards_B - rewards_B.mean())
    (reduced,) = torch.autograd.grad(losses_B.mean(), shift)
    assert reduced.item() == pytest.approx(gradient.item() / num_elements)


@pytest.mark.parametrize(
    ("level", "next_level", "noise"), [(0.5, 0.5, 0.1), (0.5, 0.6, 0.1), (1.1, 0.5, 0.1), (0.5, 0.3, -1.0)]
)
def test_levels_and_noise_out_of_range_are_refused(level: float, next_level: float, noise: float) -> None:
    with pytest.raises(ValueError, match="expected"):
        step(torch.zeros(1, 1), torch.zeros(1, 1), level, next_level, name="flow", noise=noise)


def test_coarse_latents_are_refused() -> None:
    coarse = torch.zeros(1, 1, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="float32 or finer"):
        step(coarse, coarse, 0.5, 0.3, name="ode", noise=0.0)


def test_reductions_take_any_shape() -> None:
    values_BL = torch.arange(24.0).view(2, 3, 2, 2)
    torch.testing.assert_close(reduce_elements(values_BL, "sum"), torch.tensor([66.0, 210.0]))
    torch.testing.assert_close(reduce_elements(values_BL, "mean"), torch.tensor([5.5, 17.5]))


def test_schedules_by_hand() -> None:
    assert shifted_levels(4, shift=1.0) == (1.0, 0.75, 0.5, 0.25, 0.0)
    assert shifted_levels(2, shift=3.0) == pytest.approx((1.0, 0.75, 0.0))
    check_levels(shifted_levels(10, shift=3.0))
    for wrong in ([1.0], [1.0, 0.5], [0.5, 0.6, 0.0], [1.5, 0.0]):
        with pytest.raises(TrainerUsageError, match="fall from at most 1 to 0"):
            check_levels(wrong)
