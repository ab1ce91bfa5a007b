"""The samplers on distributions whose denoiser is known in closed form."""

import math
from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from model import rng
from model.config import DiffusionConfig, SamplingConfig
from model.diffusion import build_diffusion
from model.noise_path import NoisePath, build_path
from model.sampler_table import SAMPLERS
from model.samplers import integrate, run_sampler
from model.sampling import autoguide, clip_estimates, denoiser_of, sample, to_uint8
from model.timesteps import evaluate_path, sampling_times

PATHS = ["rectified_flow", "vp_linear", "vp_cosine", "vp_zero_snr"]
ORDERS = {name: spec.order for name, spec in SAMPLERS.items() if spec.order is not None}
MEANS, SPREADS, SHARES = (-0.6, 0.1, 0.7), (0.12, 0.2, 0.1), (0.3, 0.2, 0.5)


def path_of(name: str) -> NoisePath:
    return build_path(DiffusionConfig.model_validate({"path": name}))


def sampling(**values: object) -> SamplingConfig:
    return SamplingConfig.model_validate({"ema": "none", "clip_x": False, **values})


def mixture_denoiser(
    path: NoisePath, means: tuple[float, ...] = MEANS, spreads: tuple[float, ...] = SPREADS
) -> Callable[[Tensor, float], Tensor]:
    """E[x | x_t] for a mixture of Gaussians in every pixel: each component is linear, and is weighted by its responsibility."""

    def denoise(x_t: Tensor, t: float) -> Tensor:
        alpha, sigma = (float(v) for v in path.alpha_sigma(torch.tensor([t], dtype=torch.float64)))
        log_shares, estimates = [], []
        for mean, spread, share in zip(means, spreads, SHARES, strict=False):
            variance = alpha**2 * spread**2 + sigma**2
            log_shares.append(math.log(share) - 0.5 * math.log(variance) - (x_t - alpha * mean) ** 2 / (2 * variance))
            estimates.append(mean + alpha * spread**2 / variance * (x_t - alpha * mean))
        return (torch.softmax(torch.stack(log_shares), dim=0) * torch.stack(estimates)).sum(0)

    return denoise


def start(count: int = 64, seed: int = 0) -> Tensor:
    return torch.randn(count, 1, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def fresh(step: int) -> Tensor:
    return start(seed=1000 + step)


def draw(path: NoisePath, config: SamplingConfig, begin: Tensor | None = None) -> Tensor:
    return integrate(mixture_denoiser(path), path, config, start() if begin is None else begin, fresh)


# Orders of convergence


def along(path_name: str, sampler: str, num_steps: int) -> Tensor:
    """Go from t = 0.9 to 0.2, away from pure noise and pure data, where log-SNR is infinite."""
    path = path_of(path_name)
    visited = evaluate_path(path, torch.linspace(0.9, 0.2, num_steps + 1, dtype=torch.float64).tolist())
    return run_sampler(mixture_denoiser(path), visited, sampling(sampler=sampler), start(), fresh)


@lru_cache
def flow(path_name: str, *, to_zero: bool) -> Tensor:
    """The flow of the mixture to many digits: Heun's with steps as small as the path has."""
    steps = 4000 if path_name == "rectified_flow" else 1000
    if to_zero:
        return draw(path_of(path_name), sampling(sampler="heun", num_steps=steps))
    return along(path_name, "heun", steps * 7 // 4 if path_name == "rectified_flow" else 700)


def error(sampler: str, path: NoisePath, num_steps: int, exact: Tensor) -> float:
    return float((draw(path, sampling(sampler=sampler, num_steps=num_steps)) - exact).abs().mean())


@pytest.mark.parametrize("path_name", ["rectified_flow", "vp_cosine"])
@pytest.mark.parametrize("sampler", list(ORDERS))
def test_each_sampler_converges_with_its_order_to_the_flow_of_the_mixture(sampler: str, path_name: str) -> None:
    """Steps of a discrete path are whole timesteps. UniC raises the order of its predictor by one (Zhao et al. 2023)."""
    counts = (140, 280) if path_name == "rectified_flow" else (35, 70)
    errors = [float((along(path_name, sampler, n) - flow(path_name, to_zero=False)).abs().mean()) for n in counts]
    orders = [math.log2(one / other) for one, other in pairwise(errors)]
    assert ORDERS[sampler] - 0.2 < orders[-1] < ORDERS[sampler] + 0.6, (errors, orders)


@pytest.mark.parametrize("sampler", list(ORDERS))
def test_the_trajectory_from_noise_to_data_converges(sampler: str) -> None:
    path = path_of("rectified_flow")
    exact = flow("rectified_flow", to_zero=True)
    coarse, fine = (error(sampler, path, n, exact) for n in (40, 320))
    assert fine < coarse * 8 ** -(1 if ORDERS[sampler] == 1 else 1.4) * 1.1, (coarse, fine)


@pytest.mark.parametrize("path_name", PATHS[1:])
@pytest.mark.parametrize("sampler", list(ORDERS))
def test_on_the_discrete_paths_more_steps_are_better_and_all_samplers_agree_in_the_end(path_name: str, sampler: str) -> None:
    path = path_of(path_name)
    exact = flow(path_name, to_zero=True)
    coarse, fine = (error(sampler, path, n, exact) for n in (20, 200))
    assert fine < 0.35 * coarse, (coarse, fine)
    assert fine < 0.02


@pytest.mark.parametrize("path_name", PATHS)
def test_the_better_samplers_are_better_at_few_steps(path_name: str) -> None:
    path = path_of(path_name)
    exact = flow(path_name, to_zero=True)
    first = error("ddim", path, 20, exact)
    for sampler in ("dpmpp_2m", "unipc"):
        assert error(sampler, path, 20, exact) < 0.85 * first, sampler


@pytest.mark.parametrize("path_name", PATHS)
@pytest.mark.parametrize(
    "config", [{"sampler": "ddpm"}, {"sampler": "ddim", "eta": 1.0}, {"sampler": "ddim", "eta": 0.5}, {"sampler": "heun"}]
)
def test_samples_have_the_mixtures_distribution(path_name: str, config: dict[str, object]) -> None:
    """Kolmogorov's distance between 16,000 samples and the mixture's distribution function; at random it is below 0.0155 (1 in 1000)."""
    path = path_of(path_name)
    begin = torch.randn(4000, 1, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(5))

    def noise(step: int) -> Tensor:
        return torch.randn(begin.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(100 + step))

    drawn = np.sort(integrate(mixture_denoiser(path), path, sampling(num_steps=250, **config), begin, noise).flatten().numpy())
    parts = zip(MEANS, SPREADS, SHARES, strict=True)
    expected = sum(w * 0.5 * (1 + torch.erf(torch.from_numpy((drawn - m) / (s * math.sqrt(2)))).numpy()) for m, s, w in parts)
    reached = np.arange(1, len(drawn) + 1) / len(drawn)
    assert np.abs(reached - expected).max() < 0.02


def test_ancestral_sampling_is_ddim_with_full_noise() -> None:
    """Song et al. 2020, section 4.1: eta = 1 is DDPM."""
    path = path_of("vp_linear")
    one, other = draw(path, sampling(sampler="ddpm", num_steps=50)), draw(path, sampling(sampler="ddim", eta=1.0, num_steps=50))
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_a_single_gaussian_is_solved_exactly_by_its_own_flow() -> None:
    """For one Gaussian the flow is affine: x = mean + spread * (x_T - alpha_T mean) / deviation_T."""
    path = path_of("vp_linear")
    mean, spread = 0.3, 0.5
    begin = start()
    actual = integrate(mixture_denoiser(path, (mean,), (spread,)), path, sampling(sampler="unipc", num_steps=500), begin, fresh)
    alpha, sigma = (float(v) for v in path.alpha_sigma(torch.ones(1, dtype=torch.float64)))
    expected = mean + spread * (begin - alpha * mean) / math.sqrt(alpha**2 * spread**2 + sigma**2)
    torch.testing.assert_close(actual, expected, rtol=0, atol=2e-4)


# Any prediction with any sampler


@pytest.mark.parametrize("path_name", PATHS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_same_oracle_as_image_noise_or_velocity_gives_the_same_trajectory(path_name: str, sampler: str) -> None:
    path = path_of(path_name)
    oracle = mixture_denoiser(path)
    results = []
    for prediction in ("x", "eps", "v") if path_name in ("vp_linear", "vp_cosine") else ("x", "v"):
        d = build_diffusion(DiffusionConfig.model_validate({"path": path_name, "prediction": prediction}))

        def network(x_t: Tensor, network_time: Tensor, d: object = d) -> Tensor:
            """A perfect network of this kind, with the time as a network receives it."""
            t = network_time / 1000 if path.num_timesteps is None else (network_time.round() + 1) / 1000
            x = oracle(x_t, float(t[0]))
            alpha, sigma = path.alpha_sigma(t)
            e = (x_t - alpha[:, None, None, None] * x) / sigma[:, None, None, None]
            return d.target(x, e, t)  # type: ignore[attr-defined]

        denoise = denoiser_of(network, d, clip_x=False)
        results.append(integrate(denoise, path, sampling(sampler=sampler, num_steps=20), start(), fresh))
    for other in results[1:]:
        # A noise prediction at the end of the linear schedule passes through a division by alpha = 0.006.
        torch.testing.assert_close(other, results[0], rtol=1e-10, atol=1e-10)


# Which timesteps are visited


def visited(**values: object) -> list[int]:
    times = sampling_times(path_of("vp_linear"), sampling(**values))
    assert times[-1] == 0.0
    return [round(t * 1000) for t in times[:-1]]


def test_the_spacings_are_those_of_lin_et_al() -> None:
    """Lin et al. 2023, table 2, T = 1000 and 10 steps, counted from 1."""
    assert visited(num_steps=10, spacing="leading") == [901, 801, 701, 601, 501, 401, 301, 201, 101, 1]
    assert visited(num_steps=10, spacing="linspace") == [1000, 889, 778, 667, 556, 445, 334, 223, 112, 1]
    assert visited(num_steps=10, spacing="trailing") == [1000, 900, 800, 700, 600, 500, 400, 300, 200, 100]


@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
@pytest.mark.parametrize("num_steps", [1, 7, 50, 999, 1000])
def test_every_spacing_falls_without_repeats_inside_the_path(spacing: str, num_steps: int) -> None:
    times = visited(num_steps=num_steps, spacing=spacing)
    assert len(times) == num_steps
    assert all(one > other for one, other in pairwise(times))
    assert times[-1] >= 1
    assert times[0] <= 1000
    if num_steps == 1000:
        assert times == list(range(1000, 0, -1))


@pytest.mark.parametrize("path_name", PATHS)
@pytest.mark.parametrize("shift", [0.3, 3.0])
def test_shifted_steps_still_run_from_noise_to_data(path_name: str, shift: float) -> None:
    path = path_of(path_name)
    times = sampling_times(path, sampling(num_steps=25, time_shift=shift))
    assert times[0] == 1.0
    assert times[-1] == 0.0
    assert all(one > other for one, other in pairwise(times))
    assert (times[12] > 0.5) == (shift > 1)


def test_more_steps_than_the_path_has_are_refused() -> None:
    with pytest.raises(ValueError, match="num_steps 1001 must not exceed the 1000 timesteps"):
        sampling_times(path_of("vp_linear"), sampling(num_steps=1001))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_sampler_calls_the_network_as_often_as_the_table_says(sampler: str) -> None:
    path, call_times = path_of("rectified_flow"), []
    oracle = mixture_denoiser(path)

    def counting(x_t: Tensor, t: float) -> Tensor:
        call_times.append(t)
        return oracle(x_t, t)

    progress: list[tuple[int, int]] = []
    integrate(
        counting, path, sampling(sampler=sampler, num_steps=20), start(), fresh, on_step=lambda *arguments: progress.append(arguments)
    )
    assert len(call_times) == 19 * SAMPLERS[sampler].calls_per_step + 1
    assert min(call_times) > 0
    assert progress == [(i, 20) for i in range(1, 21)]


# Guidance


def test_autoguidance_moves_away_from_the_weaker_model_inside_its_interval() -> None:
    """Karras et al. 2024: D = D_bad + w (D_good - D_bad)."""
    good, bad = (lambda x_t, t: x_t * 0 + 0.5), (lambda x_t, t: x_t * 0 + 0.2)
    guided = autoguide(good, bad, 2.0, t_low=0.2, t_high=0.6)
    x_t = torch.zeros(1, 3, 2, 2)
    assert [round(float(guided(x_t, t)[0, 0, 0, 0]), 6) for t in (0.1, 0.2, 0.4, 0.6, 0.7)] == [0.5, 0.8, 0.8, 0.8, 0.5]
    assert float(clip_estimates(autoguide(good, bad, 9.0))(x_t, 0.5).max()) == 1.0
    call_times: list[float] = []

    def counted(x_t: Tensor, t: float) -> Tensor:
        call_times.append(t)
        return x_t

    autoguide(good, counted, 1.0)(x_t, 0.5)
    autoguide(good, counted, 3.0, t_low=0.6)(x_t, 0.5)
    assert call_times == [], "the weaker model is not run where it does not matter"


def test_autoguidance_gives_more_weight_to_where_the_better_model_is_surer() -> None:
    """The weaker model sees the same data spread wider; guiding away from it brings samples nearer to the modes."""
    path = path_of("rectified_flow")
    good, bad = mixture_denoiser(path, MEANS[::2], (0.1, 0.1)), mixture_denoiser(path, MEANS[::2], (0.3, 0.3))

    def distance(weight: float) -> float:
        drawn = integrate(autoguide(good, bad, weight), path, sampling(sampler="heun", num_steps=40), start(256), fresh)
        return float(torch.stack([(drawn - mean).abs() for mean in MEANS[::2]]).min(0).values.mean())

    assert distance(2.0) < 0.8 * distance(1.0)


# Sample i is a function of (seed, i)


@pytest.mark.parametrize("sampler", ["ddpm", "heun"])
def test_sample_i_depends_on_the_seed_and_i_alone(sampler: str) -> None:
    path = path_of("vp_cosine")
    oracle = mixture_denoiser(path)

    def drawn(indices: list[int], seed: int = 3) -> Tensor:
        return sample(oracle, path, sampling(sampler=sampler, num_steps=10, seed=seed), torch.tensor(indices), 4)

    together = drawn(list(range(12)))
    for batch in ([0, 1, 2], [7], [11, 3, 5, 0]):
        # Numbers, not bits: torch computes a sine in a long row with other instructions than in a short one.
        torch.testing.assert_close(drawn(batch), together[batch], rtol=0, atol=1e-5)
    assert not torch.isclose(drawn([0]), drawn([0], seed=4)).all()
    assert not torch.isclose(together[0], together[1]).all()


def test_the_starting_noise_of_a_sample_is_bitwise_its_own() -> None:
    noise = [rng.normal(3, rng.Stream.SAMPLE, 0, torch.tensor(batch), (3, 8, 8)) for batch in ([5], [1, 5, 9])]
    assert torch.equal(noise[0][0], noise[1][1])


def test_pixels_are_clipped_then_rounded() -> None:
    values = torch.tensor([-3.0, -1.0, -1 + 0.4 / 127.5, 0.0, 1 - 0.6 / 127.5, 1.0, 7.0])
    assert to_uint8(values.reshape(1, 1, 1, 7)).flatten().tolist() == [0, 0, 0, 128, 254, 255, 255]


def test_points_know_the_half_log_snr_and_its_ends() -> None:
    noise, middle, data = evaluate_path(path_of("rectified_flow"), [1.0, 0.25, 0.0])
    assert (noise.half_log_snr, data.half_log_snr) == (-math.inf, math.inf)
    assert middle.half_log_snr == pytest.approx(math.log(3))
