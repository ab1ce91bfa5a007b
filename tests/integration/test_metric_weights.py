"""Wrong weights of metrics are found in preflight: another file, a file of another network, no file of weights at all."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from celebdit_testing.command import celebdit_here
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
from pipeline.services import Services

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
    use_store_of(context, monkeypatch)
    for new, is_damaged in ((True, False), (False, False), (True, True)):
        if is_damaged:
            context.store.put_bytes(context.layout.metric_weights(sha256), b"damaged")
        added = celebdit_here("weights", "add", str(inception), "--json", home=tmp_path / "home", capture=capsys)
        assert added.code == 0, added.err
        facts = {"sha256": sha256, "network": INCEPTION, "uri": f"{context.root}/weights/{sha256}.pth", "new": new}
        assert added.json == facts
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
    use_store_of(context, monkeypatch)
    with pytest.raises(DataRefused, match=f"evaluation.weights_sha256 is {sha256}"):
        check_metric_weights(None, sha256, INCEPTION, context, setting="weights")
    with pytest.raises(DataRefused, match=sha256):
        fetch_weights(None, sha256, context.store, tmp_path, setting="weights", stored=stored)
    assert not (tmp_path / f"{sha256}.pth").exists(), "a download is kept only if it has the digest"
    (tmp_path / "other.pth").write_bytes(b"another file")
    with pytest.raises(DataRefused, match=f"evaluation.weights_sha256 is {sha256}"):
        fetch_weights(str(tmp_path / "other.pth"), sha256, context.store, tmp_path, setting="weights")
    added = celebdit_here("weights", "add", str(path), home=tmp_path / "home", capture=capsys)
    assert added.code == 0, added.err
    assert "was there already" not in added.out
    assert context.store.get_bytes(stored) == path.read_bytes(), "adding the file again repairs it"


def test_a_file_that_changes_while_it_is_added_is_refused_and_not_stored(
    context: StepContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As by a download that is still running: what was hashed is not what was uploaded."""
    use_store_of(context, monkeypatch)
    path = saved(tmp_path, {"changed": torch.ones(3)})
    sha256 = file_sha256(path)

    def hash_and_change(hashed: Path) -> str:
        digest = file_sha256(hashed)
        hashed.write_bytes(hashed.read_bytes() + b"more")
        return digest

    monkeypatch.setattr("components.storage.file_sha256", hash_and_change)
    refused = celebdit_here("weights", "add", str(path), home=tmp_path / "home", capture=capsys)
    assert refused.code == DataRefused.exit_code
    assert f"{path} changed while it was read" in refused.err
    assert not context.store.exists(context.layout.metric_weights(sha256))


def test_a_file_of_another_network_is_added_under_no_network_of_ours(
    inception: Path, context: StepContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use_store_of(context, monkeypatch)
    path = saved(tmp_path, {name: value for name, value in torch.load(inception).items() if name != "fc.bias"})
    added = celebdit_here("weights", "add", str(path), "--json", home=tmp_path / "home", capture=capsys)
    assert added.code == 0, added.err
    assert added.json["network"] is None
    assert "a network that is not known here" in added.err
    with pytest.raises(DataRefused, match=r"1 are missing \(fc\.bias\)"):
        check_metric_weights(None, file_sha256(path), INCEPTION, context, setting="weights")


def test_a_damaged_copy_in_the_work_folder_is_downloaded_again(inception: Path, context: StepContext) -> None:
    sha256, folder = file_sha256(inception), context.scratch(WorkFolder.WEIGHTS)
    stored, copy = context.layout.metric_weights(sha256), folder / f"{sha256}.pth"
    context.store.put_file(stored, inception)
    for fetch in (
        lambda: check_metric_weights(None, sha256, INCEPTION, context, setting="weights"),
        lambda: fetch_weights(None, sha256, context.store, folder, setting="weights", stored=stored),
    ):
        copy.write_bytes(b"damaged")
        fetch()
        assert file_sha256(copy) == sha256


def use_store_of(context: StepContext, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let commands use the store of `context`."""
    variables = {"CELEBDIT_STORE": str(context.root), "AWS_ENDPOINT_URL": str(context.settings.s3_endpoint)}
    for name, value in {**variables, "MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}.items():
        monkeypatch.setenv(name, value)


def test_doctor_finds_weights_in_the_embedded_store_by_their_whole_sha256(
    inception: Path, embedded: Services, capsys: pytest.CaptureFixture[str]
) -> None:
    added = celebdit_here("weights", "add", str(inception), "--json", home=embedded.home, capture=capsys)
    assert added.code == 0, added.err
    sha256 = added.json["sha256"]
    for digest, state in ((sha256, "ok"), (sha256[:-1] + ("0" if sha256[-1] != "0" else "1"), "fail")):
        overrides = ("--preset", "seed", f"evaluation.weights_sha256={digest}")
        done = celebdit_here("doctor", *overrides, "--json", home=embedded.home, capture=capsys)
        assert {check["name"]: check["state"] for check in done.json["checks"]}["weights"] == state


@pytest.mark.parametrize("content", [b"", b"no weights", b"PK\x03\x04"])
def test_what_holds_no_weights_is_not_added(content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "w.pth").write_bytes(content)
    refused = celebdit_here("weights", "add", str(tmp_path / "w.pth"), home=tmp_path / "home", capture=capsys)
    assert refused.code == DataRefused.exit_code
    assert "torch file" in refused.err
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
