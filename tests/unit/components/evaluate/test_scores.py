"""Numbers from features: against closed forms, against torch-fidelity's own, and where they must not break."""

import importlib
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from components.evaluate.config import EvaluationConfig
from components.evaluate.measured import headline_metric, measured_metrics
from components.evaluate.metrics.inputs import Energies, Features, MetricInputs
from components.evaluate.metrics.intervals import interval_of_share
from components.evaluate.metrics.table import METRICS, SELECTABLE, Need, active_metrics
from components.evaluate.neighbours import nearest_training_images
from components.evaluate.scores import Scores, score
from components.features.frechet import bootstrap, frechet_distance
from components.features.moments import statistics

CPU = torch.device("cpu")
INCEPTION = EvaluationConfig(weights="w", weights_sha256="1" * 64, kid_subsets=5, bootstrap_replicates=4, memorisation=False)


def features(n: int, d: int, *, seed: int, shift: float = 0.0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).standard_normal((d, d)) / np.sqrt(d)
    return (np.abs(generator.standard_normal((n, d)) @ mixing) + shift).astype(np.float32)


def scores(config: EvaluationConfig, generated: Features, real: Features, **more: Any) -> Scores:
    config = config.model_copy(update={"num_images": len(generated.main)})
    return score(config, MetricInputs(config, generated, real, statistics(real.main), CPU, **more))


def test_the_distance_equals_torch_fidelitys_own_on_the_same_features() -> None:
    mine, real = features(900, 128, seed=1, shift=0.1), features(1100, 128, seed=2)
    theirs = [fid_features_to_statistics(torch.from_numpy(rows.astype(np.float64))) for rows in (mine, real)]
    expected = fid_statistics_to_metric(*theirs, verbose=False)["frechet_inception_distance"]
    assert frechet_distance(statistics(mine), statistics(real)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("n", "d"), [(300, 64), (40, 256), (2, 64), (500, 1)])
def test_the_distance_of_a_set_to_itself_is_zero_also_with_fewer_images_than_features(n: int, d: int) -> None:
    rows = features(n, d, seed=3)
    assert frechet_distance(statistics(rows), statistics(rows)) == pytest.approx(0, abs=1e-3)
    other = frechet_distance(statistics(rows), statistics(features(n, d, seed=4, shift=1.0)))
    assert np.isfinite(other)
    assert other > 0.5 * d


@pytest.mark.parametrize(("shift", "narrowest", "widest"), [(0.5, 0.6, 1.7), (0.0, 0.8, 4.0)])
def test_the_interval_covers_what_other_samples_of_the_same_model_give(shift: float, narrowest: float, widest: float) -> None:
    reference = statistics(features(4000, 16, seed=0))
    samples = [features(400, 16, seed=seed, shift=shift) for seed in range(1, 21)]
    values = [frechet_distance(statistics(rows), reference) for rows in samples]
    intervals = [bootstrap(rows, reference, value, replicates=20, seed=0) for rows, value in zip(samples, values, strict=True)]
    # Near zero the distance is quadratic in chance, and resampling sees twice of it: too wide, never too narrow.
    assert narrowest < np.mean([interval.std for interval in intervals]) / np.std(values, ddof=1) < widest
    usual = float(np.mean(values))
    covering = sum(interval.low <= usual <= interval.high for interval in intervals)
    assert covering >= 17, "a 95 % interval covers the mean of its kind in most of 20 tries"


@pytest.mark.parametrize(
    ("share", "trials", "low", "high"),
    [(0.0, 100, 0.0, 0.037), (1.0, 100, 0.963, 1.0), (0.5, 100, 0.404, 0.596), (0.1, 50, 0.0435, 0.2136)],
)
def test_the_interval_of_a_share_is_wilsons(share: float, trials: int, low: float, high: float) -> None:
    interval = interval_of_share(share, trials)
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=5e-4)


def test_the_interval_is_a_function_of_the_images_alone() -> None:
    reference, rows = statistics(features(500, 8, seed=0)), features(200, 8, seed=1)
    assert bootstrap(rows, reference, 1.0, replicates=5, seed=0) == bootstrap(rows, reference, 1.0, replicates=5, seed=0)
    assert bootstrap(rows, reference, 1.0, replicates=5, seed=0) != bootstrap(rows, reference, 1.0, replicates=5, seed=1)


def test_all_numbers_carry_their_count_and_equal_torch_fidelitys_own() -> None:
    mine, real = features(200, 32, seed=1, shift=0.2), features(300, 32, seed=2)
    logits = np.random.default_rng(0).standard_normal((200, 1008)).astype(np.float32)
    config = INCEPTION.model_copy(update={"kid_subset_images": 100})
    metrics = scores(config, Features(mine, mine, logits), Features(real, real))
    assert metrics.headline == "eval/fid_200"
    kid = kid_features_to_metric(
        torch.from_numpy(mine).double(), torch.from_numpy(real).double(), kid_subsets=5, kid_subset_size=100, verbose=False
    )
    prc = prc_features_to_metric(torch.from_numpy(mine), torch.from_numpy(real), verbose=False)
    isc = isc_features_to_metric(torch.from_numpy(logits))
    expected = {
        "eval/kid_mean_200": kid["kernel_inception_distance_mean"],
        "eval/kid_std_200": kid["kernel_inception_distance_std"],
        "eval/precision_200": prc["precision"],
        "eval/recall_200": prc["recall"],
        "eval/is_mean_200": isc["inception_score_mean"],
        "eval/is_std_200": isc["inception_score_std"],
    }
    for key, value in expected.items():
        assert metrics.metrics[key] == pytest.approx(value, abs=1e-7), key
    assert metrics.metrics["eval/fid_200_std"] == pytest.approx(metrics.intervals["eval/fid_200"].std)
    assert set(metrics.metrics) == {*expected, "eval/fid_200", "eval/fid_200_std", "eval/precision_200_std", "eval/recall_200_std"}
    assert set(metrics.metrics) == set(measured_metrics(INCEPTION.model_copy(update={"num_images": 200, "memorisation": False})))


def test_numbers_on_other_features_or_on_jpegs_are_not_called_what_they_are_not() -> None:
    mine, real = features(20, 8, seed=1), features(30, 8, seed=2)

    def names(config: EvaluationConfig) -> set[str]:
        config = config.model_copy(update={"memorisation": False, "kid_subset_images": 10})
        return {name for name in scores(config, Features(mine, mine), Features(real, real), noise=mine).metrics if "_std" not in name}

    metrics = ("frechet", "kid", "precision_recall")
    random = EvaluationConfig(extractor="random-conv", metrics=metrics, kid_subsets=2)
    assert names(random) == {
        "eval/fd_randconv_20",
        "eval/fd_randconv_20_of_noise",
        "eval/kd_randconv_mean_20",
        "eval/precision_randconv_20",
        "eval/recall_randconv_20",
    }
    jpeg = INCEPTION.model_copy(update={"metrics": metrics, "codec": "jpeg"})
    assert names(jpeg) >= {"eval/fid_20_jpeg", "eval/kid_mean_20_jpeg", "eval/precision_20_jpeg"}
    own = EvaluationConfig(extractor="my_package.features:Own_Net")
    assert names(own) == {"eval/fd_own_net_20"}


@pytest.mark.parametrize(
    "config",
    [
        INCEPTION.model_copy(update={"memorisation": True, "memorisation_images": 30}),
        INCEPTION.model_copy(update={"memorisation": True, "codec": "jpeg", "bootstrap_replicates": 0}),
        INCEPTION.model_copy(update={"metrics": ("frechet", "inception_score")}),
        INCEPTION.model_copy(update={"vgg_weights": "v", "vgg_weights_sha256": "2" * 64}),
        EvaluationConfig(extractor="random-conv", metrics=("kid", "frechet"), kid_subsets=2),
        EvaluationConfig(extractor="my_package.features:Own_Net", memorisation=False),
        EvaluationConfig(extractor="random-conv", metrics=tuple(name for name in SELECTABLE if name != "inception_score"), kid_subsets=2),
        INCEPTION.model_copy(update={"metrics": tuple(SELECTABLE), "codec": "jpeg", "kid_subsets": 2}),
    ],
)
def test_the_metrics_that_are_announced_are_those_that_are_measured(config: EvaluationConfig) -> None:
    mine, real = features(40, 8, seed=1), features(60, 8, seed=2)
    logits = np.random.default_rng(0).standard_normal((40, 1008)).astype(np.float32)
    config = config.model_copy(update={"num_images": 40})
    count = min(40, config.memorisation_images)
    nearest = nearest_training_images(*(torch.from_numpy(rows) for rows in (mine[:count], real, real[::-1].copy())))
    energies = Energies(np.abs(mine[:, :4]), np.abs(real[:, :4]))
    measured = scores(config, Features(mine, mine, logits), Features(real, real), nearest=nearest, noise=mine, energies=energies)
    assert sorted(measured.metrics) == sorted(measured_metrics(config))
    assert measured.headline == headline_metric(config) == measured_metrics(config)[0]
    assert {f"{key}_std" for key in measured.intervals} <= set(measured.metrics)


def test_without_training_images_there_are_no_metrics_of_memorisation() -> None:
    mine, real = features(20, 8, seed=1), features(30, 8, seed=2)
    config = INCEPTION.model_copy(update={"metrics": ("frechet",), "memorisation": True})
    assert set(scores(config, Features(mine, mine), Features(real, real)).metrics) == {"eval/fid_20", "eval/fid_20_std"}


def test_every_metric_of_the_table_has_a_module_of_its_name_and_names_of_its_own() -> None:
    config = INCEPTION.model_copy(update={"memorisation": True, "metrics": tuple(SELECTABLE)})
    keys = measured_metrics(config)
    assert len(set(keys)) == len(keys)
    assert {metric.name for metric in METRICS} - {metric.name for metric in active_metrics(config)} == {"noise_baseline"}
    for metric in METRICS:
        assert callable(importlib.import_module(f"components.evaluate.metrics.{metric.name}").measure), metric.name
    assert {need for metric in METRICS for need in metric.needs} == set(Need)


def test_announcing_metrics_needs_no_torch() -> None:
    code = "import sys, components.evaluate.measured; print(sorted({'torch', 'torch_fidelity', 'boto3', 'mlflow'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_copies_are_found_beside_new_samples() -> None:
    real = features(400, 24, seed=5)
    fresh = features(40, 24, seed=6)
    samples = np.concatenate([real[[3, 50, 399]], real[[7]] + 1e-3, fresh])
    mirrored = features(400, 24, seed=7)
    samples = np.concatenate([samples, mirrored[[8]]])
    nearest = nearest_training_images(*(torch.from_numpy(rows) for rows in (samples, real, mirrored)))
    assert nearest.ratio[[0, 1, 2, 3, 44]].max() < 0.01
    assert nearest.ratio[4:44].min() > 1 / 3, "a new sample has several training images at about the same distance"
    assert nearest.real[[0, 1, 2, 3, 44]].tolist() == [3, 50, 399, 7, 8]
    assert nearest.mirrored[[0, 1, 2, 3, 44]].tolist() == [False, False, False, False, True]
    assert nearest.share[[0, 1, 2, 44]].max() < 1e-5
    assert nearest.copied_share(0.5) == pytest.approx(5 / 45)
    assert 0.7 < np.median(nearest.share[4:44]) < 1.4, "new samples are about as far from the data as the data from themselves"
    assert [match[:3] for match in nearest.closest(4)] == [(0, 3, False), (1, 50, False), (2, 399, False), (44, 8, True)]


def test_the_second_nearest_image_is_not_the_nearest_one_mirrored() -> None:
    real = features(50, 24, seed=5)
    mirrored = real + 1e-4  # symmetric faces
    nearest = nearest_training_images(*(torch.from_numpy(rows) for rows in (real[[7]] + 1e-3, real, mirrored)))
    assert nearest.real.tolist() == [7]
    assert nearest.ratio[0] < 0.01


def test_an_image_and_its_own_mirror_image_are_not_neighbours() -> None:
    real = features(50, 24, seed=5)
    symmetric, apart = (nearest_training_images(*(torch.from_numpy(r) for r in (real[:1] + 1, real, m))) for m in (real, real + 100))
    assert symmetric.share == pytest.approx(apart.share)


def test_a_training_set_of_equal_images_does_not_divide_by_zero() -> None:
    same = torch.ones(5, 3)
    nearest = nearest_training_images(torch.cat([same[:1], same[:1] + 1]), same, same)
    assert np.isfinite(nearest.share).all()
    assert nearest.copied_share(0.5) == 0.5
