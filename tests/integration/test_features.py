"""Feature extractors: torch-fidelity's own code on weights of the real shapes, and weights that must not be loaded."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from celebdit_testing.inception import write_inception
from celebdit_testing.recipes import faces

from components.errors import BadInput, DataRefused
from components.evaluate.config import EvaluationConfig
from components.features.build import build_extractor
from components.features.extractors import identity_of
from components.features.frechet import frechet_distance
from components.features.moments import statistics
from components.features.names import names_for
from components.storage import ObjectStore, StoreUri, connect, file_sha256

CPU = torch.device("cpu")
GOLDEN = [-0.5900735, 0.2559511, 0.5834006, 0.1128252]


@pytest.fixture(scope="module")
def inception_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inception(tmp_path_factory.mktemp("weights") / "inception.pth")


def config(path: Path | str, sha256: str) -> EvaluationConfig:
    return EvaluationConfig(num_images=8, extractor="inception-v3-compat", weights=str(path), weights_sha256=sha256)


@pytest.fixture
def anywhere(rclone_endpoint: str) -> ObjectStore:
    return connect(rclone_endpoint, deadline_s=5.0)


@pytest.mark.fault
@pytest.mark.slow
def test_inception_gives_2048_features_from_a_path_and_from_storage(
    inception_weights: Path, anywhere: ObjectStore, prefix: StoreUri, tmp_path: Path
) -> None:
    sha256 = anywhere.put_file(prefix / "inception.pth", inception_weights)
    images = torch.from_numpy(faces(4, 32)).permute(0, 3, 1, 2)
    features = []
    for where in (inception_weights, prefix / "inception.pth"):
        with torch.inference_mode():
            features.append(build_extractor(config(str(where), sha256), anywhere, tmp_path, CPU)(images)[0])
    assert features[0].shape == (4, 2048)
    assert torch.equal(features[0], features[1])
    assert sha256 in identity_of(config(inception_weights, sha256))


def test_weights_with_another_digest_are_refused_unread(inception_weights: Path, anywhere: ObjectStore, tmp_path: Path) -> None:
    with pytest.raises(DataRefused, match="weights_sha256"):
        build_extractor(config(inception_weights, "0" * 64), anywhere, tmp_path, CPU)
    with pytest.raises(BadInput, match="does not exist") as absent:
        build_extractor(config(tmp_path / "absent.pth", "0" * 64), anywhere, tmp_path, CPU)
    assert "torch-fidelity project's releases" in str(absent.value.hint)


def test_weights_that_would_run_code_are_refused_even_with_the_right_digest(
    anywhere: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", raising=False)  # an extractor sets it for its whole process
    canary = tmp_path / "canary"

    class Payload:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {canary}",)

    torch.save({"x": Payload()}, tmp_path / "evil.pth")
    (tmp_path / "raw.pth").write_bytes(pickle.dumps(Payload()))
    for name, load in {"evil.pth": lambda file: torch.load(file, weights_only=False), "raw.pth": pickle.load}.items():
        with (tmp_path / name).open("rb") as file:
            load(file)
        assert canary.exists(), "the payload runs where nothing refuses it"
        canary.unlink()
        with pytest.raises(DataRefused, match="cannot be loaded"):
            build_extractor(config(tmp_path / name, file_sha256(tmp_path / name)), anywhere, tmp_path, CPU)
    assert not canary.exists()


def test_the_random_extractor_is_the_same_function_everywhere(anywhere: ObjectStore, tmp_path: Path) -> None:
    chosen = EvaluationConfig(num_images=8, extractor="random-conv")
    images = torch.from_numpy(faces(2, 32)).permute(0, 3, 1, 2)
    torch.manual_seed(1)
    first = build_extractor(chosen, anywhere, tmp_path, CPU)(images)[0]
    torch.manual_seed(2)
    again = build_extractor(chosen, anywhere, tmp_path, CPU)(images)[0]
    assert torch.equal(first, again)
    # Golden values: another torch or another machine must give the same numbers up to rounding.
    np.testing.assert_allclose(first[0, [0, 60, 100, 200]].tolist(), GOLDEN, rtol=1e-4, atol=1e-5)


OWN_EXTRACTOR = """
import torch
from torch_fidelity.feature_extractor_base import FeatureExtractorBase

class MeanColour(FeatureExtractorBase):
    def __init__(self, name, features_list, **kwargs):
        super().__init__(name, features_list)
    get_provided_features_list = staticmethod(lambda: ("mean",))
    get_default_feature_layer_for_metric = staticmethod(lambda metric: "mean")
    can_be_compiled = staticmethod(lambda: False)
    get_dummy_input_for_compile = staticmethod(lambda: torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    def forward(self, images):
        return (images.float().mean((2, 3)),)

not_an_extractor = 1
"""


def test_a_custom_extractor_is_used_by_name(anywhere: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_features.py").write_text(OWN_EXTRACTOR)
    monkeypatch.syspath_prepend(str(tmp_path))
    chosen = EvaluationConfig(extractor="my_features:MeanColour")
    images = torch.from_numpy(faces(2, 32)).permute(0, 3, 1, 2)
    features = build_extractor(chosen, anywhere, tmp_path, CPU)(images)[0]
    assert torch.allclose(features, images.float().mean((2, 3)))
    before = identity_of(chosen)
    assert before.startswith("my_features.MeanColour-")
    (tmp_path / "my_features.py").write_text(OWN_EXTRACTOR + "# changed")
    assert identity_of(chosen) != before, "other source, other features"
    for wrong, message in (
        ("my_features:absent", "cannot be imported"),
        ("my_features:not_an_extractor", "is not a torch_fidelity"),
        ("no_such_package:Thing", "cannot be imported"),
    ):
        with pytest.raises(BadInput, match=message):
            build_extractor(EvaluationConfig(extractor=wrong), anywhere, tmp_path, CPU)
    (tmp_path / "w.pth").write_bytes(b"w")
    unknown = EvaluationConfig(extractor="resnet-of-mine", weights=str(tmp_path / "w.pth"), weights_sha256=file_sha256(tmp_path / "w.pth"))
    with pytest.raises(BadInput, match="'resnet-of-mine' is not known"):
        build_extractor(unknown, anywhere, tmp_path, CPU)


@pytest.mark.parametrize("distance", [0.0, 1.0, 3.5])
def test_the_distance_of_gaussians_is_the_closed_form(distance: float) -> None:
    rng = np.random.default_rng(0)
    base = rng.standard_normal((4000, 6))
    shift = np.full(6, distance / np.sqrt(6))
    computed = frechet_distance(statistics(base), statistics(2.0 * base + shift))
    a, b = statistics(base), statistics(2.0 * base + shift)
    expected = float(((a.mean - b.mean) ** 2).sum() + a.covariance.trace())  # (2 - 1)^2 tr(A) for B = 4 A
    assert computed == pytest.approx(expected, rel=1e-9)


def test_the_distance_to_itself_is_zero_and_few_samples_stay_finite() -> None:
    rng = np.random.default_rng(0)
    for n in (300, 10):
        features = rng.standard_normal((n, 64))
        # Fewer samples than features leave rank-deficient covariances, whose square root rounds.
        assert frechet_distance(statistics(features), statistics(features)) == pytest.approx(0.0, abs=1e-4)
        assert np.isfinite(frechet_distance(statistics(features), statistics(rng.standard_normal((n, 64)))))


@pytest.mark.parametrize(
    ("extractor", "count", "name"),
    [
        ("inception-v3-compat", 50_000, "fid_50k"),
        ("inception-v3-compat", 5_500, "fid_5500"),
        ("random-conv", 1000, "fd_randconv_1k"),
    ],
)
def test_a_metrics_name_says_what_it_is(extractor: str, count: int, name: str) -> None:
    names = names_for(extractor, count)
    assert f"{names.frechet}_{names.count}" == name
