"""`celebdit models package`, `models sign` and `serve --kubernetes --oci`, on a registered version and a container registry on loopback."""

import json
import shutil
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from celebdit_testing.command import celebdit_here
from celebdit_testing.image_registry import image_registry
from celebdit_testing.registered import registered, registered_faces, registry_context
from celebdit_testing.signing_keys import write_keys
from celebdit_testing.trained import commit_checkpoint

from components.environment import VERIFY_KEY
from components.errors import BadInput, DataRefused
from components.manifests import CheckpointManifest
from components.registry.client import Registry
from components.registry.version_manifest import check_folder
from components.runtime.context import StepContext
from components.system.work_folders import WorkFolder
from components.weights.find import find_weights
from pipeline.services import Endpoints, Services


@pytest.fixture(scope="module")
def faces(embedded: Services, session_folder: Path) -> CheckpointManifest:
    return registered_faces(embedded, session_folder / "faces")


def test_a_version_is_pushed_written_and_served_from_its_image(
    faces: CheckpointManifest, embedded: Services, endpoints: Endpoints, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layout = tmp_path / "layout"
    packaged = embedded.home / "work" / "packaged"
    with image_registry() as registry:
        name = f"{registry.host}/team/faces"
        arguments = ("models", "package", "challenger", "--model", "faces", "--oci", name)
        registry.may_push = False
        refused = celebdit_here(*arguments, "--out", str(layout), home=embedded.home, capture=capsys)
        assert (refused.code, layout.exists()) == (2, True), "the push failed after the layout was written"
        registry.may_push = True
        killed = packaged / "faces-1-killed"
        killed.mkdir()
        (packaged / "faces-1-killed.owner").touch()
        first = celebdit_here(*arguments, "--out", str(layout), "--json", home=embedded.home, capture=capsys)
        assert first.code == 0, first.err
        facts = json.loads(first.out)
        assert f"serve faces/1 --kubernetes --oci oci+native://{facts['image']} --home" in first.err, "the image has no shell"
        assert facts["image"] == f"{name}@{facts['digest']}"
        assert "written before" in first.err
        assert list(packaged.iterdir()) == [], "neither this command's nor what a killed one left"
        again = celebdit_here(*arguments, "--json", home=embedded.home, capture=capsys)
        assert json.loads(again.out)["digest"] == facts["digest"]
        manifest = registry.manifest("team/faces", "1")
        layer = registry.blobs["team/faces", manifest["layers"][0]["digest"]]
        registry.may_push = False
        refused = celebdit_here(*arguments, home=embedded.home, capture=capsys)
        assert refused.code == 2
        assert "does not allow" in refused.err
    assert manifest["annotations"]["celebdit.io/checkpoint-digest"] == faces.digest
    assert (layout / "blobs" / "sha256" / facts["layer"].removeprefix("sha256:")).read_bytes() == layer
    (tmp_path / "layer.tar").write_bytes(layer)
    with tarfile.open(tmp_path / "layer.tar") as archive:
        archive.extractall(tmp_path / "pulled", filter="data")
    digest = Registry(registry_context(endpoints, tmp_path).tracking, "faces").version("1").tags["manifest.digest"]
    check_folder(tmp_path / "pulled" / "models", digest)
    for location, expected in ((facts["image"], f"oci://{facts['image']}"), (f"oci+native://{name}:1", f"oci+native://{name}:1")):
        printed = celebdit_here("serve", "faces@challenger", "--kubernetes", "--oci", location, home=embedded.home, capture=capsys)
        assert printed.code == 0, printed.err
        (container,) = yaml.safe_load(printed.out)["spec"]["predictor"]["containers"]
        assert {"name": "STORAGE_URI", "value": expected} in container["env"]
        assert digest in container["args"], "the container checks what it was given"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["models", "package", "1"], "nowhere to write the image"),
        (["models", "package", "1", "--oci", "faces"], "does not begin with the host"),
        (["models", "package", "1", "--oci", "r.example/a@sha256:" + "a" * 64], "has a digest"),
        (["models", "package", "1", "--out", "x", "--base", "r.example/a:1"], "--base works with --oci alone"),
        (["models", "package", "1", "--oci", "r.example/a", "--base", "other.example/a:1"], "is in another registry"),
        (["serve", "faces", "--oci", "r.example/a"], "--oci works with --kubernetes alone"),
        (["serve", "faces", "--kubernetes", "--oci", "https://r.example/a"], "is not the name of an image"),
    ],
)
def test_a_wrong_command_line_is_refused_before_anything_starts(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused = celebdit_here(*arguments, home=tmp_path / "home", capture=capsys)
    assert refused.code == 2
    assert words in refused.err
    assert not (tmp_path / "home").exists()


def refused_promotion(embedded: Services, capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, str]:
    """Status and reason of a promotion without a reason, which is refused after all else was accepted."""
    command = ("models", "promote", "challenger", "--model", "signed", "--reason", " ", *options)
    refused = celebdit_here(*command, home=embedded.home, capture=capsys)
    return refused.code, refused.err


@contextmanager
def changed_weights(embedded: Services, manifest_digest: str) -> Iterator[None]:
    """Flip a bit of a version's weights where MLflow keeps them, and remove the copies that were downloaded."""
    (file,) = (embedded.home / "s3").rglob(f"{manifest_digest}/artifacts/weights.safetensors")
    weights = file.read_bytes()
    for copy in (embedded.home / "work" / WorkFolder.MODELS).glob(f"*-{manifest_digest[:16]}"):
        shutil.rmtree(copy)
    file.write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    try:
        yield
    finally:
        file.write_bytes(weights)


def test_commands_open_what_the_configured_key_signed_and_nothing_else(
    embedded: Services,
    endpoints: Endpoints,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    context: StepContext = registry_context(endpoints, tmp_path)
    checkpoint = commit_checkpoint(context, tmp_path / "checkpoint", seed=11)
    assert registered(context, checkpoint, "signed") == "1", "a model of its own, because other tests open the others meanwhile"
    keys = write_keys(tmp_path / "key")
    monkeypatch.setenv(VERIFY_KEY, str(keys.public))
    refusal = f"is not signed, and the public key {keys.public} is set in {VERIFY_KEY}"
    with pytest.raises(DataRefused, match=r"is not signed|is signed by other keys only"):
        find_weights("models:/signed/1", ema=None, context=context)
    served = celebdit_here("serve", "signed@challenger", "--kubernetes", home=embedded.home, capture=capsys)
    assert (served.code, served.out) == (3, "")
    assert refusal in served.err
    layout = tmp_path / "unsigned"
    packaged = celebdit_here(
        "models", "package", "challenger", "--model", "signed", "--out", str(layout), home=embedded.home, capture=capsys
    )
    assert packaged.code == 3
    assert refusal in packaged.err
    assert not layout.exists()
    for force in ([], ["--force"]):
        code, problem = refused_promotion(embedded, capsys, *force)
        assert code == 3, problem
        assert refusal in problem
    signed = celebdit_here(
        "models", "sign", "challenger", "--model", "signed", "--key", str(keys.private), home=embedded.home, capture=capsys
    )
    assert signed.code == 0, signed.err
    assert find_weights("models:/signed/1", ema=None, context=context).digest == checkpoint.digest
    digest = Registry(context.tracking, "signed").version("1").tags["manifest.digest"]
    with changed_weights(embedded, digest):
        code, problem = refused_promotion(embedded, capsys)
    assert code == 3, problem
    assert "weights.safetensors" in problem
    code, problem = refused_promotion(embedded, capsys)
    assert (code, "reason" in problem) == (2, True), "the signature was accepted, and the next check refused"
    monkeypatch.setenv(VERIFY_KEY, str(write_keys(tmp_path / "other").public))
    code, problem = refused_promotion(embedded, capsys)
    assert (code, "is signed by other keys only" in problem) == (3, True)
    with pytest.raises(DataRefused, match="is signed by other keys only"):
        find_weights("models:/signed/1", ema=None, context=context)
    monkeypatch.setenv(VERIFY_KEY, str(tmp_path / "absent"))
    with pytest.raises(BadInput, match="cannot be read"):
        find_weights("models:/signed/1", ema=None, context=context)
    assert Registry(context.tracking, "signed").files_of("1", tmp_path / "files").manifest_sha256, "a step needs no signature"
