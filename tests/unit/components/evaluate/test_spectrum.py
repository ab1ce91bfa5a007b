"""Energy per octave: waves are found where they are, and noise and blur fail a gate that a distance on features passes."""

import math

import numpy as np
import pytest
import torch
from celebdit_testing.recipes import evaluation_protocol, faces
from torch import Tensor
from torch.nn import functional as F

from components.evaluate.config import EvaluationConfig
from components.evaluate.measured import measured_metrics
from components.evaluate.metrics.inputs import Energies, Features, MetricInputs
from components.evaluate.scores import Scores, score
from components.evaluate.spectrum import energy_per_octave
from components.features.moments import statistics
from components.features.random_conv import RandomConvExtractor
from components.gate.config import GateConfig
from components.gate.gate import decide
from components.manifests import EvaluationReport, GateDecision
from pipeline.config import load_config

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def drawn() -> Tensor:
    return torch.from_numpy(faces(240, 32)).permute(0, 3, 1, 2)


def wave(cycles: float, *, side: int, down: float = 0.0) -> Tensor:
    y, x = torch.meshgrid(torch.arange(side) / side, torch.arange(side) / side, indexing="ij")
    pixels = (100 * torch.sin(2 * math.pi * (cycles * x + down * y)) + 128).round()
    return pixels.to(torch.uint8).expand(1, 3, side, side)


@pytest.mark.parametrize("side", [32, 64, 48])
@pytest.mark.parametrize(("of_side", "octave"), [(0.35, 0), (0.18, 1), (0.09, 2), (0.03, 3)])
def test_a_wave_is_in_the_octave_of_its_length(side: int, of_side: float, octave: int) -> None:
    energies = energy_per_octave(wave(of_side * side, side=side))[0]
    assert energies[octave] > 0.75 * energies.sum()


def test_the_octaves_add_up_to_the_mean_square_and_the_mean_colour_does_not_count() -> None:
    noise = torch.randint(0, 256, (3, 3, 31, 40), dtype=torch.uint8)
    x = noise.double() / 127.5 - 1
    window = torch.hann_window(31, periodic=False).double()[:, None] * torch.hann_window(40, periodic=False).double()
    centred = (x - (x * window).sum((-2, -1), keepdim=True) / window.sum()) * window
    expected = centred.square().sum((1, 2, 3)) / window.square().sum()
    assert torch.allclose(energy_per_octave(noise).sum(1).double(), expected, rtol=1e-4)
    flat = torch.full((1, 3, 32, 32), 200, dtype=torch.uint8)
    assert energy_per_octave(flat).max() < 1e-9


def test_white_noise_has_as_much_energy_as_each_octave_is_wide() -> None:
    noise = (torch.randn(200, 3, 64, 64) * 30 + 128).clamp(0, 255).to(torch.uint8)
    shares = energy_per_octave(noise).mean(0)
    shares = shares / shares.sum()
    disc = [math.pi * (0.25 / 2**octave) ** 2 for octave in range(3)]
    assert shares.tolist() == pytest.approx([1 - disc[0], disc[0] - disc[1], disc[1] - disc[2], disc[2]], abs=0.01)


def measured(samples: Tensor, real: Tensor) -> Scores:
    config = EvaluationConfig(
        extractor="random-conv", metrics=("frechet", "spectrum"), num_images=len(samples), memorisation=False, bootstrap_replicates=0
    )
    extractor = RandomConvExtractor()
    mine, theirs = (extractor(images)[0].numpy() for images in (samples, real))
    energies = Energies(energy_per_octave(samples).numpy(), energy_per_octave(real).numpy())
    inputs = MetricInputs(config, Features(mine, mine), Features(theirs, theirs), statistics(theirs), CPU, noise=mine, energies=energies)
    return score(config, inputs)


def decision(scores: Scores, config: GateConfig) -> GateDecision:
    report = EvaluationReport(
        uri="s3://bucket/x",
        protocol_digest="a" * 64,
        protocol=evaluation_protocol(),
        run_key="k",
        checkpoint_uri="s3://bucket/c",
        checkpoint_digest="c" * 64,
        checkpoint_step=10,
        dataset_digest="d" * 64,
        headline=scores.headline,
        metrics=scores.metrics,
        intervals=scores.intervals,
        grid_uri="s3://bucket/g",
    )
    return decide(report, config)


def blurred(images: Tensor) -> Tensor:
    kernel = torch.ones(3, 1, 3, 3) / 9
    smooth = F.conv2d(F.pad(images.float(), (1, 1, 1, 1), mode="replicate"), kernel, groups=3)
    return smooth.round().to(torch.uint8)


def noisy(images: Tensor) -> Tensor:
    torch.manual_seed(0)
    return (images + 16 * torch.randn(images.shape)).clamp(0, 255).round().to(torch.uint8)


def grey_noise(images: Tensor) -> Tensor:
    torch.manual_seed(0)
    return (128 + 6 * torch.randn(images.shape)).round().to(torch.uint8)


@pytest.mark.parametrize("spoil", [blurred, noisy, grey_noise])
def test_noise_and_blur_fail_the_gate_on_the_spectrum(spoil: object, drawn: Tensor) -> None:
    real, fresh = drawn[:120], drawn[120:]
    demo = load_config("demo").gate
    bounds = {name: {key.replace("_1k", "_120"): bound for key, bound in getattr(demo, name).items()} for name in ("at_most", "at_least")}
    distance_alone = GateConfig(at_most={key: bound for key, bound in bounds["at_most"].items() if "fd_" in key})
    assert list(distance_alone.at_most.values()) == [4.0]
    assert callable(spoil)
    good, bad = measured(fresh, real), measured(spoil(fresh), real)
    assert decision(good, GateConfig(**bounds)).decision == "pass"
    refused = decision(bad, GateConfig(**bounds))
    assert refused.decision == "fail"
    assert any("eval/spectrum_octave_" in reason for reason in refused.reasons)
    if spoil is not grey_noise:
        assert decision(bad, distance_alone).decision == "pass", "the distance alone does not see it"
    assert decision(bad, GateConfig(at_most={"eval/spectrum_error_120": 0.5})).decision == "fail"
    assert decision(good, GateConfig(at_most={"eval/spectrum_error_120": 0.5})).decision == "pass"


def test_the_ratios_of_other_images_of_the_same_kind_are_one_within_their_interval(drawn: Tensor) -> None:
    scores = measured(drawn[120:], drawn[:120])
    for octave in range(1, 5):
        interval = scores.intervals[f"eval/spectrum_octave_{octave}_120"]
        assert interval.low - 2 * interval.std < 1 < interval.high + 2 * interval.std
    halves = scores.metrics["eval/spectrum_octave_1_120"]
    dimmed = measured((drawn[120:].float() / 2 + 64).round().to(torch.uint8), drawn[:120])
    assert dimmed.metrics["eval/spectrum_octave_1_120"] == pytest.approx(halves / 4, rel=0.05)
    assert dimmed.metrics["eval/spectrum_error_120"] == pytest.approx(2, abs=0.3)


def test_images_without_any_detail_have_a_finite_error() -> None:
    flat = np.zeros((5, 4), dtype=np.float32)
    config = EvaluationConfig(extractor="random-conv", metrics=("frechet", "spectrum"), num_images=5, memorisation=False)
    rows = np.eye(5, dtype=np.float32)
    reference = np.full((5, 4), 0.01, dtype=np.float32)
    inputs = MetricInputs(
        config, Features(rows, rows), Features(rows, rows), statistics(rows), CPU, noise=rows, energies=Energies(flat, reference)
    )
    scores = score(config, inputs)
    assert 5 < scores.metrics["eval/spectrum_error_5"] < 20
    assert set(scores.metrics) == set(measured_metrics(config))
