"""How much of the spread of data is left after few steps, where the denoiser is known exactly, and in which step it is lost.

Data are Gaussian, so a sampler is a linear map of its noise: mean and deviation of its samples are computed, not estimated.
"""

import math
import re
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from model.config import DiffusionConfig, SamplingConfig
from model.noise_path import NoisePath, build_path
from model.sampler_table import SAMPLERS
from model.samplers import Denoise, run_sampler
from model.timesteps import Point, evaluate_path, sampling_times

DOCUMENTS = Path(__file__).parents[3] / "docs"
DISCRETE = ["vp_linear", "vp_cosine", "vp_zero_snr"]
SPACINGS = ["linspace", "leading", "trailing"]
COMBINATIONS = [("rectified_flow", "linspace"), *((path, spacing) for path in DISCRETE for spacing in SPACINGS)]
STEPS = (5, 8, 10, 20)
MEAN, DEVIATION = 0.3, 0.5
ONE = torch.ones(1, 1, 1, 1, dtype=torch.float64)


def path_of(name: str) -> NoisePath:
    return build_path(DiffusionConfig.model_validate({"path": name}))


def sampling(**values: object) -> SamplingConfig:
    return SamplingConfig.model_validate({"ema": "none", "clip_x": False, **values})


def denoiser_of(path: NoisePath, mean: float, deviation: float) -> Denoise:
    def denoise(x_t: Tensor, t: float) -> Tensor:
        alpha, sigma = (float(v) for v in path.alpha_sigma(torch.tensor([t], dtype=torch.float64)))
        return mean + alpha * deviation**2 / (alpha**2 * deviation**2 + sigma**2) * (x_t - alpha * mean)

    return denoise


@cache
def moments(
    path_name: str, sampler: str, num_steps: int, spacing: str, deviation: float = DEVIATION, time_shift: float = 1.0
) -> tuple[float, float]:
    """Return the deviation of samples over that of the data, and the error of their mean.

    The first image starts without noise and ends at the mean, the others show where the starting noise and that of each step get.
    """
    path = path_of(path_name)
    config = sampling(sampler=sampler, num_steps=num_steps, spacing=spacing, time_shift=time_shift)
    basis = torch.eye(num_steps + 1, dtype=torch.float64)[:, :, None, None, None]
    none = 0 * ONE

    def only(index: int) -> Tensor:
        return torch.cat([none, basis[index]])

    points = evaluate_path(path, sampling_times(path, config))
    ends = run_sampler(denoiser_of(path, MEAN, deviation), points, config, only(0), lambda step: only(step + 1)).flatten()
    return float((ends[1:] - ends[0]).square().sum().sqrt()) / deviation, float(ends[0]) - MEAN


def rows_of(document: str, pattern: str) -> list[tuple[str, ...]]:
    """Return the groups of `pattern` in each line of a document that it matches."""
    return [match.groups() for line in (DOCUMENTS / document).read_text().splitlines() if (match := re.fullmatch(pattern, line))]


def test_the_documented_table_of_samplers_paths_and_spacings_is_exact_and_complete() -> None:
    rows = rows_of("experiments/few-steps.md", r"\| `(\w+)` \| `(\w+)` \| (\d+) \|(.+)\|")
    assert {(path, spacing, int(steps)) for path, spacing, steps, _ in rows} == {(*pair, n) for pair in COMBINATIONS for n in STEPS}
    for path, spacing, steps, cells in rows:
        documented = [float(number) for cell in cells.split("|") for number in cell.split()]
        exact = [value for sampler in SAMPLERS for value in moments(path, sampler, int(steps), spacing)]
        assert documented == pytest.approx(exact, abs=0.0051), (path, spacing, steps)


def test_the_documented_table_of_shifted_times_is_exact() -> None:
    rows = rows_of("experiments/few-steps.md", r"\| `(\w+)` `(\w+)`, shift ([\d.]+) \|(.+)\|")
    assert len(rows) == 10
    for path, spacing, shift, cells in rows:
        documented = [float(number) for cell in cells.split("|") for number in cell.split()]
        samplers = ("ddim", "euler", "heun", "unipc")
        exact = [moments(path, sampler, 20, spacing, spread, float(shift))[0] for sampler in samplers for spread in (0.5, 0.1, 0.02)]
        assert documented == pytest.approx(exact, abs=0.0051), (path, spacing, shift)


def test_the_documented_spreads_at_few_steps_are_those_of_a_known_gaussian() -> None:
    lines = (DOCUMENTS / "network.md").read_text().splitlines()
    columns = re.findall(r"`(\w+)` `(\w+)`", next(line for line in lines if line.startswith("| path, steps |")))
    rows = rows_of("network.md", r"\| `(vp_\w+)`, (\d+) \|(.+)\|")
    assert len(columns) == 6
    assert len(rows) == 5
    for path_name, steps, cells in rows:
        exact = [moments(path_name, sampler, int(steps), spacing)[0] for sampler, spacing in columns]
        assert exact == pytest.approx([float(cell) for cell in cells.split("|")], abs=0.0051), (path_name, steps)


BOUNDS = {
    "ddpm": (0.23, 0.60),
    "ddim": (0.15, 0.56),
    "euler": (0.08, 0.27),
    "heun": (0.05, 0.21),
    "dpmpp_2m": (0.05, 0.55),
    "unipc": (0.05, 0.55),
}
"""Largest error of the deviation at 20 and at 5 steps, as a share of the right one."""


@pytest.mark.parametrize(("path_name", "spacing"), COMBINATIONS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_errors_of_mean_and_deviation_are_bounded_and_fall_with_the_steps(sampler: str, path_name: str, spacing: str) -> None:
    errors = {n: [abs(value) for value in (ratio - 1, mean)] for n in STEPS for ratio, mean in [moments(path_name, sampler, n, spacing)]}
    for steps, bound in zip((20, 5), BOUNDS[sampler], strict=True):
        assert errors[steps][0] < bound
    assert errors[20][0] < errors[5][0]
    # `leading` starts below pure noise, so the noise that it starts from lacks the part of the mean that is there already.
    assert errors[20][1] < 0.02
    assert errors[5][1] < 0.09


def losses_by_step(
    path_name: str, sampler: str, spacing: str, num_steps: int, deviation: float = DEVIATION
) -> tuple[list[float], list[Point]]:
    """Return the relative error of the deviation that each step adds if it starts from the right one, and the points between the steps."""
    path, config = path_of(path_name), sampling(sampler=sampler, num_steps=num_steps, spacing=spacing)
    points = evaluate_path(path, sampling_times(path, config))

    def right(at: Point) -> float:
        return math.hypot(at.alpha * deviation, at.sigma)

    denoise = denoiser_of(path, 0.0, deviation)
    errors = [
        float(run_sampler(denoise, [at, to], config, ONE, lambda step: ONE)) * right(at) / right(to) - 1 for at, to in pairwise(points)
    ]
    return errors, points


@pytest.mark.parametrize("path_name", DISCRETE)
def test_heun_loses_spread_in_its_last_step_alone_by_the_square_of_its_length(path_name: str) -> None:
    """Near data the deviation is s + (1 - s^2) / (2 s) phi^2 at the angle phi; a step along the tangent loses twice the second term."""
    errors, points = losses_by_step(path_name, "heun", "trailing", 20)
    phi = points[-2].flow_time
    assert sum(errors[:-1]) > 0
    assert errors[-1] == pytest.approx(-(phi**2) * (1 - DEVIATION**2) / (2 * DEVIATION**2), rel=0.1)
    assert abs(errors[-1]) > 3 * max(abs(error) for error in errors[:-1])
    same = losses_by_step(path_name, "euler", "trailing", 20)[0]
    assert same[-1] == errors[-1], "the last step of both is the same"
    even = losses_by_step(path_name, "heun", "linspace", 20)[0]
    assert abs(even[-1]) < 2e-4, "from the first timestep there is nothing left to lose"


@pytest.mark.parametrize("path_name", DISCRETE)
def test_half_a_last_step_would_keep_spread_and_leave_noise_in_smooth_areas(path_name: str) -> None:
    """The velocity at data is zero where data are smooth, so Heun's last step could use it without a call. It would be grain.

    For noise of a deviation above that of the data the step must remove it all, which the tangent does and half of it does not.
    """
    for deviation, better in ((0.5, True), (0.0, False)):
        path, config = path_of(path_name), sampling(sampler="euler", num_steps=20, spacing="trailing")
        points = evaluate_path(path, sampling_times(path, config))[-2:]
        at = math.hypot(points[0].alpha * deviation, points[0].sigma)
        end = float(run_sampler(denoiser_of(path, 0.0, deviation), points, config, at * ONE, lambda step: ONE))
        one_step, half_step = abs(end - deviation), abs((at + end) / 2 - deviation)
        assert (half_step < one_step) is better
        if not better:
            assert one_step * 127.5 < 0.3, "levels of 255"
            assert half_step * 127.5 > 5


@pytest.mark.parametrize("path_name", DISCRETE)
@pytest.mark.parametrize("sampler", ["heun", "dpmpp_2m", "unipc"])
def test_a_shift_toward_data_keeps_more_of_fine_detail_and_all_of_the_rest(path_name: str, sampler: str) -> None:
    for deviation in (0.1, 0.02):
        plain, shifted = (1 - moments(path_name, sampler, 20, "trailing", deviation, shift)[0] for shift in (1.0, 0.2))
        assert 0 < shifted < 0.8 * plain
    assert moments(path_name, sampler, 20, "trailing", time_shift=0.2)[0] == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("path_name", DISCRETE)
def test_a_closing_estimate_takes_spread_away(path_name: str) -> None:
    """A last estimate of the clean image instead of the last step of the sampler."""
    for sampler in ("euler", "heun"):
        path, config = path_of(path_name), sampling(sampler=sampler, num_steps=20, spacing="trailing")
        denoise, points = denoiser_of(path, 0.0, DEVIATION), evaluate_path(path, sampling_times(path, config))
        closing = denoise(run_sampler(denoise, points[:-1], config, ONE, lambda step: ONE), points[-2].t)
        assert float(closing) / DEVIATION < moments(path_name, sampler, 20, "trailing")[0] < 1
