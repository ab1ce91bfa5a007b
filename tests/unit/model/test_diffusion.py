"""The diffusion algebra against the closed forms of the papers, in float64."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from model.config import DiffusionConfig
from model.diffusion import Diffusion, build_diffusion
from model.noise_path import VariancePreserving, build_path, shift_times
from model.samplers import posterior
from model.timesteps import evaluate_path

T = 1000
PATHS = ["rectified_flow", "vp_linear", "vp_cosine", "vp_zero_snr"]
PREDICTIONS = ["x", "eps", "v"]
# Pure data and, with a zero terminal SNR, pure noise are left out where a quotient would be 0 / 0.
TIMES = torch.tensor([1, 7, 100, 500, 800, 999], dtype=torch.float64) / T


def diffusion(**values: object) -> Diffusion:
    return build_diffusion(DiffusionConfig.model_validate({"weighting": "none", **values}))


def combinations() -> list[tuple[str, str]]:
    """A noise prediction needs a path that keeps some signal."""
    return [(path, prediction) for path in PATHS for prediction in PREDICTIONS if prediction != "eps" or path in ("vp_linear", "vp_cosine")]


def grid(path: VariancePreserving) -> tuple[np.ndarray, np.ndarray]:
    alpha, sigma = path.alpha_sigma(torch.arange(1, T + 1, dtype=torch.float64) / T)
    return alpha.numpy(), sigma.numpy()


def vp(name: str) -> VariancePreserving:
    path = build_path(DiffusionConfig.model_validate({"path": name}))
    assert isinstance(path, VariancePreserving)
    return path


# Schedules


def test_the_linear_schedule_is_that_of_ddpm() -> None:
    """Ho et al. 2020, section 4: T = 1000, beta from 1e-4 to 0.02, alpha_bar their product."""
    alpha, sigma = grid(vp("vp_linear"))
    alpha_bar, product = [], 1.0
    for k in range(T):
        product *= 1 - (1e-4 + (0.02 - 1e-4) * k / (T - 1))
        alpha_bar.append(product)
    np.testing.assert_allclose(alpha**2, alpha_bar, rtol=1e-12)
    np.testing.assert_allclose(sigma**2, 1 - np.array(alpha_bar), rtol=1e-10)
    assert alpha_bar[-1] == pytest.approx(4.0358e-5, rel=1e-4)  # their "D_KL = 4e-5" signal at the end


def test_the_cosine_schedule_is_that_of_improved_ddpm() -> None:
    """Nichol & Dhariwal 2021, equation 17, s = 0.008; beta is clipped at 0.999, which touches the last step alone."""
    alpha, _ = grid(vp("vp_cosine"))
    ideal = [math.cos((k / T + 0.008) / 1.008 * math.pi / 2) ** 2 for k in range(T + 1)]
    np.testing.assert_allclose(alpha[:-1] ** 2, np.array(ideal[1:-1]) / ideal[0], rtol=1e-9)
    assert alpha[-1] ** 2 == pytest.approx(alpha[-2] ** 2 * 0.001, rel=1e-9)


def test_the_rescaled_schedule_ends_in_pure_noise_and_begins_where_it_did() -> None:
    """Lin et al. 2023, algorithm 1, step by step."""
    alpha, sigma = grid(vp("vp_zero_snr"))
    root, _ = grid(vp("vp_linear"))
    first, last = root[0], root[-1]
    np.testing.assert_allclose(alpha, (root - last) * first / (first - last), rtol=1e-12, atol=1e-15)
    assert (alpha[-1], sigma[-1]) == (0.0, 1.0)
    assert alpha[0] == pytest.approx(first, rel=1e-12)


def test_the_straight_path_is_straight() -> None:
    path = build_path(DiffusionConfig())
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    alpha, sigma = path.alpha_sigma(t)
    assert torch.equal(alpha, 1 - t)
    assert torch.equal(sigma, t)


@pytest.mark.parametrize("name", PATHS)
def test_signal_falls_noise_rises_and_both_ends_are_there(name: str) -> None:
    path = build_path(DiffusionConfig.model_validate({"path": name}))
    t = torch.linspace(0, 1, 2001, dtype=torch.float64)
    alpha, sigma = path.alpha_sigma(t)
    assert alpha.dtype == sigma.dtype == torch.float64
    assert (alpha[0], sigma[0]) == (1.0, 0.0)
    assert (alpha.diff() < 0).all()
    assert (sigma.diff() >= 0).all()
    assert float(sigma[-1]) > 0.9999
    if name != "rectified_flow":
        torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(t), rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", PATHS)
def test_the_velocity_is_the_derivative_of_the_path_along_its_clock(name: str) -> None:
    """Rectified flow: e - x. Variance preserving: alpha e - sigma x, along the angle (Salimans & Ho 2022, appendix D)."""
    path = build_path(DiffusionConfig.model_validate({"path": name}))
    t = torch.tensor([0.2503, 0.5007, 0.9004], dtype=torch.float64)  # inside a segment of the discrete paths
    a, s = path.velocity_weights(t)
    step = 1e-6
    (alpha_b, sigma_b), (alpha_a, sigma_a) = path.alpha_sigma(t + step), path.alpha_sigma(t - step)
    elapsed = path.flow_time(t + step) - path.flow_time(t - step)
    torch.testing.assert_close((alpha_b - alpha_a) / elapsed, a, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close((sigma_b - sigma_a) / elapsed, s, rtol=1e-6, atol=1e-7)
    if name == "rectified_flow":
        assert (a.tolist(), s.tolist()) == ([-1.0] * 3, [1.0] * 3)
    else:
        alpha, sigma = path.alpha_sigma(t)
        assert torch.equal(a, -sigma)
        assert torch.equal(s, alpha)


@pytest.mark.parametrize("name", PATHS[1:])
def test_the_network_sees_the_timesteps_0_to_999(name: str) -> None:
    timesteps = vp(name).timestep(torch.arange(1, T + 1, dtype=torch.float64) / T).float()
    assert torch.equal(timesteps, torch.arange(T, dtype=torch.float32))


# Predictions


@pytest.mark.parametrize(("path", "prediction"), combinations())
def test_the_image_comes_back_out_of_a_perfect_prediction(path: str, prediction: str) -> None:
    d = diffusion(path=path, prediction=prediction)
    x, e = torch.randn(2, len(TIMES), 3, dtype=torch.float64)
    x_t = d.add_noise(x, e, TIMES)
    torch.testing.assert_close(d.clean_image(d.target(x, e, TIMES), x_t, TIMES), x, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(("path", "prediction"), combinations())
def test_an_error_of_the_output_weighs_as_it_says(path: str, prediction: str) -> None:
    d = diffusion(path=path, prediction=prediction)
    x, e, error = torch.randn(3, len(TIMES), 4, dtype=torch.float64)
    x_t = d.add_noise(x, e, TIMES)
    moved = d.clean_image(d.target(x, e, TIMES) + error, x_t, TIMES) - x
    torch.testing.assert_close(moved.abs(), d.image_error_per_output_error(TIMES)[:, None].abs() * error.abs(), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("path", ["rectified_flow", "vp_zero_snr"])
def test_noise_prediction_is_refused_where_there_is_no_signal(path: str) -> None:
    with pytest.raises(ValidationError, match="use 'x' or 'v'"):
        DiffusionConfig.model_validate({"path": path, "prediction": "eps"})


# Weights. In all of them x-MSE, eps-MSE and v-MSE are of the same estimate, so that |e_hat - e|^2 = SNR |x_hat - x|^2, and so on.


def snr_of(path: str) -> torch.Tensor:
    alpha, sigma = diffusion(path=path, prediction="x").path.alpha_sigma(TIMES)
    return (alpha / sigma) ** 2


def weight(**values: object) -> torch.Tensor:
    return diffusion(**values).loss_weight(TIMES)


def same(one: torch.Tensor, other: torch.Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-12, atol=0)


@pytest.mark.parametrize("path", PATHS[1:3])
def test_plain_noise_error_is_snr_times_image_error(path: str) -> None:
    same(weight(path=path, prediction="eps"), torch.ones_like(TIMES))
    d = diffusion(path=path, prediction="eps")
    same(d.image_error_per_output_error(TIMES) ** -2, snr_of(path))


def test_plain_velocity_error_is_snr_plus_one_times_image_error_on_vp_and_a_square_on_the_straight_path() -> None:
    """Salimans & Ho 2022, section 4: the v loss is the "SNR + 1" weighting. On the straight path v = (x_t - x) / t."""
    same(diffusion(path="vp_linear", prediction="v").image_error_per_output_error(TIMES) ** -2, snr_of("vp_linear") + 1)
    same(diffusion(prediction="v").image_error_per_output_error(TIMES) ** -2, TIMES**-2)


@pytest.mark.parametrize(("path", "prediction"), combinations())
def test_a_loss_in_velocity_space_is_the_plain_loss_of_a_velocity_prediction(path: str, prediction: str) -> None:
    floor = 1e-9  # below every sigma here
    actual = weight(path=path, prediction=prediction, weighting="v", sigma_floor=floor)
    per_output = diffusion(path=path, prediction=prediction).image_error_per_output_error(TIMES)
    per_velocity = diffusion(path=path, prediction="v").image_error_per_output_error(TIMES)
    same(actual, (per_output / per_velocity) ** 2)
    if prediction == "v":
        same(actual, torch.ones_like(TIMES))


def test_the_default_loss_is_that_of_jit_with_its_floor() -> None:
    """Li & He 2025: |x_hat - x|^2 / max(t, 0.05)^2 with time counted from data to noise."""
    t = torch.tensor([0.001, 0.05, 0.3, 1.0], dtype=torch.float64)
    same(build_diffusion(DiffusionConfig()).loss_weight(t), torch.tensor([400.0, 400.0, 1 / 0.09, 1.0], dtype=torch.float64))


@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_min_snr_is_hang_et_als_for_each_prediction(gamma: float) -> None:
    """Hang et al. 2023, section 3.4: min(SNR, g) for x, min(SNR, g) / SNR for eps, min(SNR, g) / (SNR + 1) for v."""
    snr = snr_of("vp_linear")
    clipped = torch.minimum(snr, torch.tensor(gamma, dtype=torch.float64))
    for prediction, expected in (("x", clipped), ("eps", clipped / snr), ("v", clipped / (snr + 1))):
        same(weight(path="vp_linear", prediction=prediction, weighting="min_snr", min_snr_gamma=gamma), expected)


@pytest.mark.parametrize("bias", [-2.0, 0.0, 1.5])
def test_sigmoid_weighting_is_kingma_and_gaos_for_the_noise(bias: float) -> None:
    """Kingma & Gao 2023: sigmoid(b - log SNR) on the error of the noise; at log SNR = b it is one half."""
    snr = snr_of("vp_cosine")
    expected = 1 / (1 + snr * math.exp(-bias))
    same(weight(path="vp_cosine", prediction="eps", weighting="sigmoid", sigmoid_bias=bias), expected)
    same(weight(path="vp_cosine", prediction="x", weighting="sigmoid", sigmoid_bias=bias), expected * snr)


@pytest.mark.parametrize("weighting", ["none", "v", "min_snr", "sigmoid"])
@pytest.mark.parametrize(("path", "prediction"), combinations())
def test_the_loss_of_an_image_is_finite_positive_and_zero_only_for_a_perfect_output(path: str, prediction: str, weighting: str) -> None:
    d = diffusion(path=path, prediction=prediction, weighting=weighting)
    times = torch.cat([TIMES, torch.ones(1, dtype=torch.float64)])
    x, e = torch.randn(2, len(times), 3, 4, 4)
    target = d.target(x, e, times)
    assert torch.equal(d.losses(target, x, e, times), torch.zeros(len(times)))
    wrong = d.losses(target + 1, x, e, times)
    assert torch.isfinite(wrong).all()
    assert (wrong >= 0).all()
    assert wrong.dtype == torch.float32
    torch.testing.assert_close(wrong, d.loss_weight(times).float(), rtol=1e-5, atol=1e-6)


# Times


def test_logit_normal_times_have_the_mean_and_spread_that_were_asked_for() -> None:
    d = build_diffusion(DiffusionConfig(logit_mean=0.8, logit_std=0.7))
    uniform = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    logits = torch.logit(d.draw_times(uniform))
    assert float(logits.mean()) == pytest.approx(0.8, abs=1e-6)
    assert float(logits.std()) == pytest.approx(0.7, abs=1e-3)


@pytest.mark.parametrize("share", [0.05, 0.1, 0.5])
@pytest.mark.parametrize("below", [0.01, 0.125, 0.5])
def test_a_uniform_share_adds_its_part_of_the_times_near_zero(share: float, below: float) -> None:
    uniform = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    rest = float((diffusion().draw_times(uniform) < below).double().mean())
    mixed = float((diffusion(uniform_share=share).draw_times(uniform) < below).double().mean())
    assert mixed == pytest.approx(share * below + (1 - share) * rest, abs=2e-5)
    assert mixed > rest


def test_without_a_uniform_share_stored_settings_are_those_from_before_it() -> None:
    assert "uniform_share" not in diffusion().config.model_dump(mode="json")
    assert diffusion(uniform_share=0.1).config.model_dump(mode="json")["uniform_share"] == 0.1


@pytest.mark.parametrize("path", PATHS[1:])
def test_uniform_times_visit_every_timestep_equally(path: str) -> None:
    d = diffusion(path=path, prediction="x", times="uniform")
    t = d.draw_times((torch.arange(5 * T, dtype=torch.float64) + 0.5) / (5 * T))
    visited, counts = torch.unique((t * T).round().long(), return_counts=True)
    assert torch.equal(visited, torch.arange(1, T + 1))
    assert (counts == 5).all()
    torch.testing.assert_close(t * T, (t * T).round(), rtol=0, atol=1e-9)


@settings(max_examples=50, deadline=None)
@given(st.floats(0.001, 0.999), st.floats(0.1, 20.0))
def test_shifted_times_are_those_of_an_image_with_other_noise(t: float, shift: float) -> None:
    """Esser et al. 2024, section 5.3.2: on the straight path the shift multiplies sigma / alpha, at every time."""
    shifted = float(shift_times(torch.tensor([t], dtype=torch.float64), shift)[0])
    assert shifted / (1 - shifted) == pytest.approx(shift * t / (1 - t), rel=1e-9)


@pytest.mark.parametrize("times", [{"times": "uniform"}, {}, {"uniform_share": 0.25}], ids=str)
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("shift", [0.2, 1.0, 6.0])
def test_extreme_draws_stay_on_the_path(times: dict[str, object], path: str, shift: float) -> None:
    d = diffusion(path=path, prediction="x", time_shift=shift, logit_mean=3.0, logit_std=3.0, **times)
    t = d.draw_times(torch.tensor([0.5 * 2.0**-32, 0.25, 0.5, 1 - 0.5 * 2.0**-32], dtype=torch.float64))
    assert (t > 0).all()
    assert (t <= 1).all()
    assert torch.isfinite(d.loss_weight(t)).all()


# The posterior


def test_the_posterior_is_that_of_ddpm() -> None:
    """Ho et al. 2020, equations 6 and 7, with all 1000 betas."""
    path = vp("vp_linear")
    beta = np.linspace(1e-4, 0.02, T)
    alpha_bar = np.cumprod(1 - beta)
    x_t, x = torch.randn(2, 5, dtype=torch.float64)
    for k in (1, 2, 250, 998, 999):
        at, to = evaluate_path(path, [(k + 1) / T, k / T])
        mean, deviation = posterior(x_t, x, at, to)
        weight_x = math.sqrt(alpha_bar[k - 1]) * beta[k] / (1 - alpha_bar[k])
        weight_x_t = math.sqrt(1 - beta[k]) * (1 - alpha_bar[k - 1]) / (1 - alpha_bar[k])
        torch.testing.assert_close(mean, weight_x * x + weight_x_t * x_t, rtol=1e-9, atol=1e-10)
        assert deviation**2 == pytest.approx((1 - alpha_bar[k - 1]) / (1 - alpha_bar[k]) * beta[k], rel=1e-9)


def test_the_last_posterior_is_the_image_itself() -> None:
    at, to = evaluate_path(vp("vp_linear"), [1 / T, 0.0])
    x_t, x = torch.randn(2, 5, dtype=torch.float64)
    mean, deviation = posterior(x_t, x, at, to)
    assert deviation == 0
    torch.testing.assert_close(mean, x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", PATHS)
def test_a_step_back_along_any_path_gives_its_marginal(name: str) -> None:
    """If x_t has the right mean and variance given x, so has x_s: that is what makes it the posterior."""
    path = build_path(DiffusionConfig.model_validate({"path": name}))
    for t, s in [(1.0, 0.7), (0.7, 0.699), (0.3, 0.1)]:
        at, to = evaluate_path(path, [t, s])
        one, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
        per_x_t, deviation = posterior(one, zero, at, to)
        per_x, _ = posterior(zero, one, at, to)
        assert float(per_x_t * at.alpha + per_x) == pytest.approx(to.alpha, rel=1e-10)
        assert float(per_x_t) ** 2 * at.sigma**2 + deviation**2 == pytest.approx(to.sigma**2, rel=1e-9)
