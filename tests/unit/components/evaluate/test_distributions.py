"""Metrics of whole distributions of features: sliced Wasserstein distance, density and coverage, against slow plain computations."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from scipy.stats import wasserstein_distance

from components.evaluate.metrics.density_coverage import density_and_coverage
from components.features.sliced_distance import _match_sorted, sliced_distance


def rows(n: int, d: int, *, seed: int, shift: float = 0.0) -> torch.Tensor:
    return torch.from_numpy((np.random.default_rng(seed).standard_normal((n, d)) + shift).astype(np.float32))


@pytest.mark.parametrize(("n", "m"), [(7, 7), (12, 5), (40, 60), (1, 3)])
def test_the_transport_on_a_line_is_exact_for_any_two_numbers_of_images(n: int, m: int) -> None:
    a, b = np.sort(rows(n, 1, seed=1)[:, 0].numpy()), np.sort(rows(m, 1, seed=2)[:, 0].numpy())
    left, right, weights = (part.numpy() for part in _match_sorted(n, m, torch.device("cpu")))
    assert weights.sum() == pytest.approx(1)
    assert (weights * np.abs(a[left] - b[right])).sum() == pytest.approx(wasserstein_distance(a, b), rel=1e-5)
    repeated = (np.repeat(a, m) - np.repeat(b, n)) ** 2
    assert (weights * (a[left] - b[right]) ** 2).sum() == pytest.approx(repeated.mean(), rel=1e-5)


def test_a_shift_costs_its_square_and_a_set_is_at_no_distance_from_itself() -> None:
    a = rows(500, 12, seed=3)
    shift = torch.linspace(-1, 1, 12)
    assert sliced_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert sliced_distance(a + shift, a) == pytest.approx(float(shift.square().sum()), rel=0.1)
    assert sliced_distance(a.flip(0), a) == pytest.approx(0, abs=1e-9)


def test_what_has_the_same_mean_and_covariance_is_still_told_apart() -> None:
    generator = np.random.default_rng(0)
    normal = torch.from_numpy(generator.standard_normal((4000, 4)).astype(np.float32))
    two_points = torch.from_numpy(generator.choice([-1.0, 1.0], (4000, 4)).astype(np.float32))
    other = torch.from_numpy(generator.standard_normal((4000, 4)).astype(np.float32))
    assert sliced_distance(two_points, normal) > 20 * sliced_distance(other, normal)


def test_density_and_coverage_equal_their_definition() -> None:
    generated, reference = rows(90, 6, seed=4, shift=0.3), rows(70, 6, seed=5)
    among = np.sort(cdist(reference, reference), axis=1)[:, 5]
    inside = cdist(reference, generated) < among[:, None]
    per_image, coverage = density_and_coverage(generated, reference)
    assert per_image.mean().item() == pytest.approx(inside.sum() / (5 * 90), rel=1e-5)
    assert coverage == pytest.approx(inside.any(1).mean())


def test_a_collapsed_model_is_dense_and_covers_little() -> None:
    reference = rows(300, 6, seed=6)
    dense, covered = density_and_coverage(reference[:1].repeat(300, 1) * 0.1, reference)
    fair, all_covered = density_and_coverage(rows(300, 6, seed=7), reference)
    assert dense.mean() > 2 * fair.mean()
    assert covered < 0.5
    assert all_covered > 0.8
