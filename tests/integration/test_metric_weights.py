"""Wrong weights of metrics are found in preflight: another file, a file of another network, no file of weights at all."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from celebdit_testing.inception import write_inception
from celebdit_testing.steps import step_context

from components.errors import BadInput, CelebditError, DataRefused
from components.evaluate.config import EvaluationConfig
from components.features.build import build_extractor
from components.features.extractors import fetch_weights, identity_of
from components.preflight.metric_networks import NETWORKS
from components.preflight.metric_weights import UnknownPickle, check_metric_weights, difference, tensor_shapes
from components.runtime.context import StepContext
from components.storage import StoreUri, connect, file_sha256
from components.system.work_folders import WorkFolder
from pipeline.cli import main

INCEPTION = "inception-v3-compat"


@pytest.fixture(scope="module")
def inception(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inception(tmp_path_factory.mktemp("weights") / "inception.pth")


@pytest.fixture
def context(tmp_path: Path, rclone_endpoint: str) -> StepContext:
    return step_context("preflight", tmp_path, "s3://bucket/weights-checked", endpoint=rclone_endpoint)


def saved(folder: Path, value: Any, **options: Any) -> Path:
    torch.save(value, folder / "saved.pth", **options)
    return folder / "saved.pth"


def check(path: Path | str, context: StepContext, *, network: str = INCEPTION, sha256: str | None = None) -> str:
    digest = file_sha256(Path(path)) if sha256 is None else sha256
    return check_metric_weights(str(path), digest, network, context, setting="weights")


def test_the_right_weights_are_found_right_here_and_in_object_storage(inception: Path, context: StepContext) -> None:
    assert "has its sha256 and the 566 tensors of inception-v3-compat" in check(inception, context)
    uri = StoreUri.parse("s3://bucket/weights-checked/inception.pth")
    context.store.put_file(uri, inception)
    assert "566 tensors" in check(str(uri), context, sha256=file_sha256(inception))
    assert (context.scratch(WorkFolder.WEIGHTS) / f"{file_sha256(inception)}.pth").is_file(), "the evaluate step need not download it again"


def test_weights_are_added_once_and_found_by_their_sha256_alone(
    inception: Path, context: StepContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sha256 = file_sha256(inception)
    by_sha256 = EvaluationConfig(num_images=8, extractor=INCEPTION, weights_sha256=sha256)
    with pytest.raises(BadInput, match=f"{sha256} are not in the store s3://bucket/weights-checked") as missing:
        check_metric_weights(None, sha256, INCEPTION, context, setting="weights")
    assert "celebdit weights add FILE" in str(missing.value.hint)
    folder = context.scratch(WorkFolder.WEIGHTS)
    with pytest.raises(BadInput, match="are not in the store"):
        fetch_weights(None, sha256, context.store, folder, setting="weights", stored=context.layout.metric_weights(sha256))
    environment = {"CELEBDIT_STORE": str(context.root), "AWS_ENDPOINT_URL": str(context.settings.s3_endpoint)}
    for name, value in {**environment, "MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "CELEBDIT_HOME": str(tmp_path / "home")}.items():
        monkeypatch.setenv(name, value)
    for new, is_damaged in ((True, False), (False, False), (True, True)):
        if is_damaged:
            context.store.put_bytes(context.layout.metric_weights(sha256), b"damaged")
        with pytest.raises(SystemExit) as ended:
            main(["weights", "add", str(inception), "--json"])
        printed = capsys.readouterr()
        assert not ended.value.code, printed.err
        facts = {"sha256": sha256, "network": INCEPTION, "uri": f"{context.root}/weights/{sha256}.pth", "new": new}
        assert json.loads(printed.out) == facts
    assert "566 tensors" in check_metric_weights(None, sha256, INCEPTION, context, setting="weights")
    assert (folder / f"{sha256}.pth").is_file()
    assert build_extractor(by_sha256, context.store, folder, torch.device("cpu")) is not None
    assert identity_of(by_sha256) == identity_of(by_sha256.model_copy(update={"weights": str(inception)}))


def test_another_file_at_the_address_of_weights_is_noticed_by_all_who_meet_it(
    context: StepContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = saved(tmp_path, {"a": torch.ones(3)})
    sha256 = file_sha256(path)
    stored = context.layout.metric_weights(sha256)
    assert sha256 in str(stored)
    context.store.put_bytes(stored, b"another file")
    environment = {"CELEBDIT_STORE": str(context.root), "AWS_ENDPOINT_URL": str(context.settings.s3_endpoint)}
    for name, value in {**environment, "MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "CELEBDIT_HOME": str(tmp_path / "home")}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(DataRefused, match=f"evaluation.weights_sha256 is {sha256}"):
        check_metric_weights(None, sha256, INCEPTION, context, setting="weights")
    with pytest.raises(DataRefused, match=sha256):
        fetch_weights(None, sha256, context.store, tmp_path, setting="weights", stored=stored)
    with pytest.raises(SystemExit) as ended:
        main(["weights", "add", str(path)])
    printed = capsys.readouterr()
    assert ended.value.code == 0, printed.err
    assert "was there already" not in printed.out
    assert context.store.get_bytes(stored) == path.read_bytes(), "adding the file again repairs it"


@pytest.mark.parametrize("content", [b"", b"no weights", b"PK\x03\x04"])
def test_what_holds_no_weights_is_not_added(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CELEBDIT_HOME", str(tmp_path / "home"))
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(SystemExit) as ended:
        main(["weights", "add", str(tmp_path / "w.pth")])
    assert ended.value.code == DataRefused.exit_code
    assert "torch file" in capsys.readouterr().err
    assert not (tmp_path / "home").exists()


def test_the_networks_tensors_are_those_that_pytorch_names(inception: Path) -> None:
    names = {name for name in torch.load(inception) if not name.endswith("num_batches_tracked")}
    assert names == set(NETWORKS[INCEPTION])
    with torch.device("meta"):
        import torchvision

        vgg16 = {name: tuple(value.shape) for name, value in torchvision.models.vgg16().state_dict().items()}
        of_torchvision = {
            name: tuple(value.shape) for name, value in torchvision.models.inception_v3(init_weights=False).state_dict().items()
        }
    assert difference(vgg16, NETWORKS["vgg16"]) is None
    assert "AuxLogits" in str(difference(of_torchvision, NETWORKS[INCEPTION]))


def wrong(kind: str, folder: Path, inception: Path) -> tuple[Path, str | None, type[CelebditError], str]:
    """A file, its configured sha256 (None: its own), the error, and what it says."""
    tensors = torch.load(inception)
    if kind == "another sha256":
        return inception, "0" * 64, DataRefused, r"has sha256 [0-9a-f]{64}, evaluation\.weights_sha256 is 0{64}"
    if kind == "another network":
        return saved(folder, {"features.0.weight": torch.zeros(1)}), None, DataRefused, "478 are missing .* 1 are unknown|472 are missing"
    if kind == "another head":
        return (
            saved(folder, {**tensors, "fc.weight": torch.zeros(1000, 2048)}),
            None,
            DataRefused,
            r"fc\.weight has shape \(1000, 2048\), expected \(1008, 2048\)",
        )
    if kind == "one tensor less":
        return (
            saved(folder, {name: value for name, value in tensors.items() if name != "fc.bias"}),
            None,
            DataRefused,
            r"1 are missing \(fc\.bias\)",
        )
    path = folder / "weights.pth"
    path.write_bytes({"html": b"<html>sign in</html>", "empty": b"", "zip": b"PK\5\6" + bytes(18), "pickle": pickle.dumps({"a": 1})}[kind])
    return path, None, DataRefused, "is not a torch file|is a zip, but no torch file"


@pytest.mark.parametrize("kind", ["another sha256", "another network", "another head", "one tensor less", "html", "empty", "zip", "pickle"])
def test_wrong_weights_are_refused_with_the_whole_reason(kind: str, tmp_path: Path, inception: Path, context: StepContext) -> None:
    path, sha256, error, message = wrong(kind, tmp_path, inception)
    with pytest.raises(error, match=message) as refused:
        check(path, context, sha256=sha256)
    assert refused.value.exit_code == 3
    assert "torch-fidelity project's releases" in str(refused.value.hint)


def test_weights_that_are_not_there_are_bad_input(context: StepContext, tmp_path: Path) -> None:
    for location in (str(tmp_path / "nothing.pth"), "s3://bucket/weights-checked/nothing.pth"):
        with pytest.raises(BadInput, match="does not exist"):
            check(location, context, sha256="0" * 64)


def test_files_of_before_pytorch_1_6_are_read_and_no_pickle_is_executed(tmp_path: Path, inception: Path) -> None:
    shapes = tensor_shapes(inception)
    old = saved(tmp_path, torch.load(inception), _use_new_zipfile_serialization=False)
    assert tensor_shapes(old) == shapes
    assert shapes["fc.weight"] == (1008, 2048)

    class Malice:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "executed",)

    with pytest.raises(UnknownPickle, match="it names "):
        tensor_shapes(saved(tmp_path, {"a": Malice()}))
    assert not (tmp_path / "executed").exists()


def test_the_reason_why_weights_do_not_load_is_whole(tmp_path: Path, s3_credentials: None) -> None:
    from components.evaluate.config import EvaluationConfig
    from components.features.build import build_extractor

    path = saved(tmp_path, {"features.0.weight": torch.zeros(1)})
    config = EvaluationConfig(num_images=8, extractor=INCEPTION, weights=str(path), weights_sha256=file_sha256(path))
    with pytest.raises(DataRefused, match=r"Missing key\(s\) in state_dict: .*Conv2d_1a_3x3"):
        build_extractor(config, connect("http://127.0.0.1:9"), tmp_path, torch.device("cpu"))
