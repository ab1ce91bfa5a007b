"""Averages of the weights: profiles, and their recombination after training against the exactly tracked average (Karras et al. 2024)."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.ema_profiles import (
    AveragedWeights,
    ClassicProfile,
    PowerProfile,
    Profile,
    gamma_of_sigma_rel,
    profile_overlap,
    recombine,
)


def sigma_rel_of_gamma(gamma: float) -> float:
    """Return the standard deviation of the profile, relative to the training time (equation 123)."""
    return math.sqrt((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3)))


def trajectory(steps: int, seed: int = 0) -> torch.Tensor:
    """Weights of a training: a drift toward a goal plus a random walk that calms down."""
    generator = torch.Generator().manual_seed(seed)
    t = torch.arange(1, steps + 1, dtype=torch.float64)[:, None]
    noise = torch.randn(steps, 40, dtype=torch.float64, generator=generator)
    goal = torch.randn(40, dtype=torch.float64, generator=generator)
    return goal * (1 - torch.exp(-4 * t / steps)) + 0.3 * (noise / t.sqrt()).cumsum(0)


def tracked(profile: Profile, weights: torch.Tensor, at: list[int]) -> dict[int, torch.Tensor]:
    average = AveragedWeights(profile, [weights[0]])
    averages = {}
    for step, current in enumerate(weights, start=1):
        average.update([current], step)
        if step in at:
            averages[step] = average.tensors[0].clone()
    return averages


@pytest.mark.parametrize("sigma_rel", [0.05, 0.10, 0.15, 0.25])
def test_a_power_profile_weighs_step_tau_by_its_power(sigma_rel: float) -> None:
    """Equations 2 and 127: the average at T is the integral of theta(tau) tau^gamma, in which step tau has the stretch [tau - 1, tau]."""
    weights, total = trajectory(60), 60
    gamma = gamma_of_sigma_rel(sigma_rel)
    shares = [(tau / total) ** (gamma + 1) - ((tau - 1) / total) ** (gamma + 1) for tau in range(1, total + 1)]
    expected = sum(share * current for share, current in zip(shares, weights, strict=True))
    torch.testing.assert_close(tracked(PowerProfile(sigma_rel), weights, [total])[total], expected, rtol=1e-12, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.floats(0.001, 0.28))
def test_width_and_exponent_are_each_others_inverse(sigma_rel: float) -> None:
    assert sigma_rel_of_gamma(gamma_of_sigma_rel(sigma_rel)) == pytest.approx(sigma_rel, rel=1e-9)


def test_the_exponents_are_the_papers() -> None:
    """Section 3.1: sigma_rel 0.05 and 0.10 are gamma 16.97 and 6.94."""
    assert gamma_of_sigma_rel(0.05) == pytest.approx(16.97, abs=0.005)
    assert gamma_of_sigma_rel(0.10) == pytest.approx(6.94, abs=0.005)


@pytest.mark.parametrize("gamma", [0.5, 6.94, 16.97])
def test_the_width_is_the_standard_deviation_of_the_profile(gamma: float) -> None:
    tau = np.linspace(0, 1, 2_000_001)
    density = (gamma + 1) * tau**gamma
    mean = np.trapezoid(tau * density, tau)
    deviation = math.sqrt(np.trapezoid((tau - mean) ** 2 * density, tau))
    assert sigma_rel_of_gamma(gamma) == pytest.approx(deviation, rel=1e-6)


@pytest.mark.parametrize("sigma_rel", [0.0, 0.29, 1.0, -0.1])
def test_an_impossible_width_is_refused(sigma_rel: float) -> None:
    with pytest.raises(ValueError, match=r"between 0 and 0\.2887"):
        gamma_of_sigma_rel(sigma_rel)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 50), st.integers(1, 50), st.floats(0.2, 20), st.floats(0.2, 20))
def test_the_overlap_of_two_profiles_is_their_integral(step_a: int, step_b: int, gamma_a: float, gamma_b: float) -> None:
    tau = np.linspace(0, min(step_a, step_b), 200_001)
    profiles = [(g + 1) * (tau / s) ** g / s for s, g in ((step_a, gamma_a), (step_b, gamma_b))]
    assert profile_overlap(step_a, gamma_a, step_b, gamma_b) == pytest.approx(np.trapezoid(profiles[0] * profiles[1], tau), rel=1e-4)


@pytest.mark.parametrize("sigma_rel", [0.03, 0.07, 0.12, 0.20])
def test_a_recombined_average_is_the_one_that_would_have_been_tracked(sigma_rel: float) -> None:
    total, every = 2000, 50
    weights = trajectory(total)
    steps = list(range(every, total + 1, every))
    stored = {width: tracked(PowerProfile(width), weights, steps) for width in (0.05, 0.10)}
    snapshots = [(step, width) for step in steps for width in (0.05, 0.10)]
    exact = tracked(PowerProfile(sigma_rel), weights, [total])[total]
    plan = recombine(snapshots, total, sigma_rel)
    recombined = sum(c * stored[width][step] for c, (step, width) in zip(plan.coefficients, snapshots, strict=True))
    nearest = min(float((stored[width][total] - exact).norm()) for width in (0.05, 0.10))
    distance = float((recombined - exact).norm())
    assert distance < 0.02 * nearest, f"distance {distance:.2e}, of the nearest tracked average {nearest:.2e}"
    assert distance < 0.01 * float(exact.norm())
    assert plan.error < 0.02


@pytest.mark.parametrize("every", [75, 450])
@pytest.mark.parametrize("sigma_rel", [0.03, 0.12, 0.25])
def test_weights_that_do_not_move_come_back_as_they_are(sigma_rel: float, every: int) -> None:
    """An average has coefficients that add up to 1, also where few snapshots or a far width give a poor match."""
    snapshots = [(step, width) for step in range(every, 901, every) for width in (0.05, 0.10)]
    plan = recombine(snapshots, 900, sigma_rel)
    assert sum(plan.coefficients) == pytest.approx(1.0, abs=1e-12)


def test_a_poor_match_is_still_near_for_weights_that_are_not_around_zero() -> None:
    weights, steps = trajectory(900) + 5, list(range(75, 901, 75))
    stored = {width: tracked(PowerProfile(width), weights, steps) for width in (0.05, 0.10)}
    snapshots = [(step, width) for step in steps for width in (0.05, 0.10)]
    plan = recombine(snapshots, 900, 0.25)
    assert plan.error > 0.1
    recombined = sum(c * stored[width][step] for c, (step, width) in zip(plan.coefficients, snapshots, strict=True))
    exact = tracked(PowerProfile(0.25), weights, [900])[900]
    assert float((recombined - exact).norm()) < 0.005 * float(exact.norm())


def test_a_recombined_average_can_end_at_an_earlier_step() -> None:
    weights, steps = trajectory(1000), list(range(50, 1001, 50))
    stored = {width: tracked(PowerProfile(width), weights, steps) for width in (0.05, 0.10)}
    snapshots = [(step, width) for step in steps if step <= 700 for width in (0.05, 0.10)]
    plan = recombine(snapshots, 700, 0.08)
    recombined = sum(c * stored[width][step] for c, (step, width) in zip(plan.coefficients, snapshots, strict=True))
    exact = tracked(PowerProfile(0.08), weights, [700])[700]
    assert float((recombined - exact).norm()) < 0.01 * float(exact.norm())


def test_what_was_stored_comes_back_as_it_is() -> None:
    snapshots = [(step, width) for step in (50, 100) for width in (0.05, 0.10)]
    plan = recombine(snapshots, 100, 0.10)
    np.testing.assert_allclose(plan.coefficients, [0, 0, 0, 1], atol=1e-6)
    assert plan.error < 1e-6


@pytest.mark.parametrize("sigma_rel", [0.06, 0.15])
def test_the_error_is_the_distance_of_the_profiles_and_shrinks_with_more_snapshots(sigma_rel: float) -> None:
    total, errors = 1000, []
    for count in (1, 4, 20):
        steps = np.linspace(total / count, total, count).round().astype(int)
        snapshots = [(int(step), width) for step in steps for width in (0.05, 0.10)]
        plan = recombine(snapshots, total, sigma_rel)
        tau = np.linspace(0, total, 400_001)
        gammas = [gamma_of_sigma_rel(width) for _, width in snapshots]
        combined = sum(
            c * np.where(tau <= step, (g + 1) * (tau / step) ** g / step, 0)
            for c, (step, _), g in zip(plan.coefficients, snapshots, gammas, strict=True)
        )
        g = gamma_of_sigma_rel(sigma_rel)
        expected = (g + 1) * (tau / total) ** g / total
        distance = math.sqrt(np.trapezoid((combined - expected) ** 2, tau) / np.trapezoid(expected**2, tau))
        assert plan.error == pytest.approx(distance, rel=0.02, abs=1e-5)
        errors.append(plan.error)
    assert errors[0] > errors[1] > 5 * errors[2], errors


@pytest.mark.parametrize(("snapshots", "step"), [([], 10), ([(20, 0.1)], 10)])
def test_snapshots_that_cannot_give_the_average_are_refused(snapshots: list[tuple[int, float]], step: int) -> None:
    with pytest.raises(ValueError, match="needs snapshots from steps up to it"):
        recombine(snapshots, step, 0.1)


def test_the_classic_average_is_exponential_after_its_warm_up() -> None:
    weights = trajectory(400)
    profile = ClassicProfile(0.95)
    averages = tracked(profile, weights, [399, 400])
    torch.testing.assert_close(averages[400], 0.95 * averages[399] + 0.05 * weights[399], rtol=1e-12, atol=1e-12)
    assert [profile.decay(step) for step in (1, 11)] == [0.1, 0.55]
    assert profile.decay(10**6) == 0.95


def test_an_average_does_not_follow_the_weights_by_reference() -> None:
    weights = [torch.ones(3)]
    average = AveragedWeights(PowerProfile(0.1), weights)
    weights[0].fill_(7.0)
    assert torch.equal(average.tensors[0], torch.ones(3))
    average.update(weights, 1)
    assert torch.equal(average.tensors[0], torch.full((3,), 7.0)), "the first update takes the weights whole"
