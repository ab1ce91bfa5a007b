"""A registered version whose files, manifest, tags or record somebody replaced: refused before any of it is loaded.

The attacker writes to MLflow's bucket, to the registry or to our own bucket. Each attack is shown to be live first: plain MLflow runs it.
"""

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
import yaml
from celebdit_testing.command import celebdit_here
from celebdit_testing.recipes import DIGEST
from celebdit_testing.registered import SAMPLING, description_of, registered, registry_context, report_of
from celebdit_testing.steps import notes
from celebdit_testing.trained import commit_checkpoint

from components.errors import DataRefused
from components.evaluate.champion import NotMeasurable, open_champion
from components.manifests import CheckpointManifest
from components.registry.client import ModelVersion, Registry
from components.registry.tags import VersionTags
from components.registry.version_files import WEIGHTS_FILE
from components.registry.version_manifest import MANIFEST_FILE, VersionManifest, check_folder
from components.runtime.context import StepContext
from components.serving.package import save_model, servable
from components.storage import ObjectStore, StoreUri, file_sha256
from components.system.ports import free_port
from components.system.work_folders import WorkFolder
from components.tracking.logged_models import LoggedModels
from components.weights.find import find_weights
from model.ema import EmaName
from pipeline.server_commands import MLFLOW_BUCKET
from pipeline.services import Endpoints, Services

SLOW = [pytest.mark.fault, pytest.mark.slow]
SERVING, NETWORK, DESCRIBED = "mlflow_model.py", "code/model/dit.py", "MLmodel"


@pytest.fixture
def context(endpoints: Endpoints, tmp_path: Path) -> StepContext:
    return registry_context(endpoints, tmp_path)


def packaged(context: StepContext, folder: Path, *, seed: int) -> tuple[CheckpointManifest, Path]:
    """A checkpoint, and the folder that the register step would upload for it."""
    checkpoint = commit_checkpoint(context, folder, seed=seed)
    weights = folder / checkpoint.run_key / "step-000000007" / EmaName("0.1").file
    save_model(folder / "model", weights=weights, description=description_of(checkpoint, file_sha256(weights)), card="a card\n")
    return checkpoint, folder / "model"


def tags_of(checkpoint: CheckpointManifest) -> VersionTags:
    return VersionTags(
        checkpoint_digest=checkpoint.digest,
        ema="0.1",
        run_key=checkpoint.run_key,
        checkpoint_uri=checkpoint.uri,
        checkpoint_step=7,
        dataset_digest=DIGEST,
        trial="passed",
    )


def logged_model(context: StepContext, checkpoint: CheckpointManifest) -> tuple[str, str]:
    run_id = str(context.tracking.step_run("train", run_key=checkpoint.run_key).info.run_id)
    return run_id, LoggedModels(context.tracking).log_evaluation(run_id, report_of(checkpoint))


def stored_at(version: ModelVersion) -> StoreUri:
    """Where MLflow's server keeps the files of a version in its bucket."""
    return StoreUri(MLFLOW_BUCKET, f"artifacts/{str(version.source).partition(':/')[2]}")


@dataclass(frozen=True)
class Version:
    """Version 1 of the model "tampered", and what a writer of MLflow's bucket can do to it."""

    store: ObjectStore
    prefix: StoreUri
    folder: Path
    """A copy of its files as they were registered."""
    digest: str

    @property
    def names(self) -> list[str]:
        return sorted(path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*") if path.is_file())

    def write(self, name: str, data: bytes) -> None:
        self.store.put_bytes(StoreUri(self.prefix.bucket, f"{self.prefix.key}/{name}"), data)

    def delete(self, name: str) -> None:
        self.store.delete(StoreUri(self.prefix.bucket, f"{self.prefix.key}/{name}"))

    def restore(self) -> None:
        """Put back what was registered."""
        for item in self.store.list(self.prefix):
            if item.uri.relative_to(self.prefix) not in self.names:
                self.store.delete(item.uri)
        for name in self.names:
            self.write(name, (self.folder / name).read_bytes())


@pytest.fixture(scope="module")
def registered_version(embedded: Services, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Version]:
    found, folder = embedded.wait(), tmp_path_factory.mktemp("tampered")
    with pytest.MonkeyPatch.context() as patch:
        for key, value in found.environment.items():
            patch.setenv(key, value)
        context = registry_context(found, folder)
        checkpoint, model = packaged(context, folder, seed=71)
        registry = Registry(context.tracking, "tampered")
        registry.ensure("tampered")
        run_id, model_id = logged_model(context, checkpoint)
        version = registry.add_version(model, tags=tags_of(checkpoint), model_id=model_id, run_id=run_id, description="")
        yield Version(context.store, stored_at(version), model, str(version.source).rpartition("/")[2])


@pytest.fixture
def version(registered_version: Version, context: StepContext) -> Iterator[Version]:
    """The version, whole before and after the test."""
    Registry(context.tracking, "tampered").files_of("1", context.scratch(WorkFolder.MODELS, "before"))
    yield registered_version
    registered_version.restore()
    Registry(context.tracking, "tampered").files_of("1", context.scratch(WorkFolder.MODELS, "after"))


def payload(marker: Path, original: bytes = b"") -> bytes:
    """The original source behind a line that leaves a mark when it runs."""
    return f"open({str(marker)!r}, 'a').write('ran')\n".encode() + original


def plain_mlflow_loads(uri: str) -> str:
    """Load a version as MLflow does by itself, in a process of its own, whatever comes of it; return its output."""
    code = "import sys, mlflow.pyfunc\nmlflow.pyfunc.load_model(sys.argv[1])"
    done = subprocess.run([sys.executable, "-P", "-c", code, uri], capture_output=True, text=True, check=False, timeout=120)
    return done.stdout + done.stderr


def attack_code(version: Version, marker: Path) -> dict[str, bytes]:
    described = yaml.safe_load((version.folder / DESCRIBED).read_bytes())
    described["flavors"]["python_function"] |= {"loader_module": "evil", "code": "code"}
    return {
        SERVING: payload(marker, (version.folder / SERVING).read_bytes()),
        NETWORK: payload(marker, (version.folder / NETWORK).read_bytes()),
        DESCRIBED: yaml.safe_dump(described).encode(),
    }


@pytest.mark.fault
@pytest.mark.slow
@pytest.mark.timeout(120)  # a version that is not refused is served until Ctrl-C
@pytest.mark.parametrize("name", [SERVING, pytest.param(NETWORK, marks=[pytest.mark.fault, pytest.mark.slow]), DESCRIBED])
def test_replaced_code_runs_nowhere(
    version: Version, name: str, context: StepContext, embedded: Services, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    marker = tmp_path / "marker"
    version.write(name, attack_code(version, marker)[name])
    if name == DESCRIBED:
        version.write("code/evil.py", payload(marker))
    output = plain_mlflow_loads("models:/tampered/1")
    assert marker.exists(), f"plain MLflow runs it: {output}"
    marker.unlink()
    for command in (
        ("serve", "tampered/1", "--port", str(free_port())),
        ("serve", "tampered/1", "--kubernetes"),
        ("sample", "models:/tampered/1", "--out", str(tmp_path / "x.png")),
    ):
        refused = celebdit_here(*command, home=embedded.home, capture=capsys)
        assert (refused.code, "Traceback" in refused.err) == (3, False), refused.err
        assert (name in refused.err) or (name == DESCRIBED and "code/evil.py" in refused.err), refused.err
        assert "version 1 of 'tampered'" in refused.err
    registry = Registry(context.tracking, "tampered")
    with pytest.raises(NotMeasurable, match="registered"):
        open_champion(registry, registry.version("1"), tmp_path / "champion")
    assert not marker.exists()


@pytest.mark.fault
@pytest.mark.slow
def test_no_file_of_a_version_can_be_replaced_even_by_one_of_the_same_length(version: Version, context: StepContext) -> None:
    registry = Registry(context.tracking, "tampered")
    for name in (MANIFEST_FILE, "requirements.txt", "artifacts/description.json", f"artifacts/{WEIGHTS_FILE}"):
        data = (version.folder / name).read_bytes()
        version.write(name, data[:-1] + bytes([data[-1] ^ 1]))
        with pytest.raises(DataRefused) as refused:
            registry.files_of("1", context.scratch(WorkFolder.MODELS, "fetched"))
        assert f"{name!r}" in refused.value.message
        assert not list(context.scratch(WorkFolder.MODELS, "fetched").iterdir()), "nothing of it stays on this machine"
        version.write(name, data)


def test_the_server_refuses_a_version_with_any_of_its_files_replaced(version: Version, tmp_path: Path) -> None:
    """The check that the process makes which loads the version, here and in KServe's container."""
    folder = tmp_path / "copy"
    shutil.copytree(version.folder, folder)
    check_folder(folder, version.digest)
    assert len(version.names) > 20
    for name in version.names:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]) if data else b"x")
        with pytest.raises(DataRefused) as refused:
            check_folder(folder, version.digest)
        assert f"{name!r}" in refused.value.message
        (folder / name).write_bytes(data)
    marker = tmp_path / "marker"
    (folder / SERVING).write_bytes(payload(marker, (folder / SERVING).read_bytes()))
    command = [sys.executable, "-P", "-m", "components.serving.server", str(folder), "--manifest", version.digest, "--port", "0"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (ended.returncode, marker.exists()) == (3, False)
    assert f"{SERVING!r}" in ended.stderr


def test_weights_with_a_fitting_description_and_manifest_are_refused(version: Version, context: StepContext, tmp_path: Path) -> None:
    _, other = packaged(context, tmp_path / "other", seed=72)
    manifest = VersionManifest.of_folder(other, checkpoint_digest="c" * 64, ema="0.1")
    (other / MANIFEST_FILE).write_bytes(manifest.to_bytes())
    for path in other.rglob("*"):
        if path.is_file():
            version.write(path.relative_to(other).as_posix(), path.read_bytes())
    with pytest.raises(DataRefused, match="registered"):
        find_weights("models:/tampered/1", ema=None, context=context)


def replace_tag(context: StepContext, version: Version, key: str, value: str | None) -> Callable[[], object]:
    """Change a tag of the version; return what undoes it."""
    client = context.tracking.client
    before = client.get_model_version("tampered", "1").tags[key]
    if value is None:
        client.delete_model_version_tag("tampered", "1", key)
    else:
        client.set_model_version_tag("tampered", "1", key, value)
    return lambda: client.set_model_version_tag("tampered", "1", key, before)


def replace_record(context: StepContext, version: Version, data: bytes | None) -> Callable[[], object]:
    """Change the record of the version in our own store; return what undoes it."""
    uri = context.layout.version_records / f"{version.digest}.json"
    before = context.store.get_bytes(uri)
    context.store.delete(uri) if data is None else context.store.put_bytes(uri, data)
    return lambda: context.store.put_bytes(uri, before)


@pytest.mark.parametrize(
    ("attack", "reason"),
    [
        pytest.param(lambda c, v: replace_tag(c, v, "manifest.digest", "f" * 64), "names the manifest", id="tag"),
        pytest.param(lambda c, v: replace_tag(c, v, "manifest.digest", None), "names the manifest None", id="no tag", marks=SLOW),
        pytest.param(lambda c, v: replace_tag(c, v, "manifest.digest", "../../other"), "names the manifest", id="odd tag", marks=SLOW),
        pytest.param(lambda c, v: replace_tag(c, v, "checkpoint.digest", "f" * 64), "the registry says", id="checkpoint", marks=SLOW),
        pytest.param(lambda c, v: replace_record(c, v, None), "does not exist", id="no record", marks=SLOW),
        pytest.param(lambda c, v: replace_record(c, v, b"{}"), "not the one that was registered", id="record"),
        pytest.param(
            lambda c, v: v.write("sitecustomize.py", b"") or v.restore, "was not registered: 'sitecustomize.py'", id="file", marks=SLOW
        ),
        pytest.param(
            lambda c, v: v.write("code/model/__pycache__/dit.cpython-311.pyc", b"") or v.restore,
            "'code/model/__pycache__/'",
            id="compiled",
            marks=SLOW,
        ),
        pytest.param(
            lambda c, v: v.delete(f"artifacts/{WEIGHTS_FILE}") or v.restore, "lacks 'artifacts/weights.safetensors'", id="weights"
        ),
        pytest.param(lambda c, v: v.delete(MANIFEST_FILE) or v.restore, r"lacks 'MANIFEST\.json'", id="no manifest", marks=SLOW),
    ],
)
def test_whatever_disagrees_is_refused_although_a_whole_copy_is_here(
    version: Version, context: StepContext, attack: Callable[[StepContext, Version], Callable[[], object]], reason: str
) -> None:
    undo = attack(context, version)
    try:
        with pytest.raises(DataRefused, match=reason):
            Registry(context.tracking, "tampered").files_of("1", context.scratch(WorkFolder.MODELS, "fetched"))
    finally:
        undo()
    assert (
        Registry(context.tracking, "tampered").files_of("1", context.scratch(WorkFolder.MODELS, "fetched")).manifest_sha256
        == version.digest
    )


@pytest.mark.fault
@pytest.mark.slow
def test_a_damaged_copy_on_this_machine_is_fetched_again(version: Version, context: StepContext, tmp_path: Path) -> None:
    registry = Registry(context.tracking, "tampered")
    files = registry.files_of("1", tmp_path / "models")
    whole = files.weights.read_bytes()
    files.weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    (files.folder / "code/json.py").write_text("raise SystemExit")
    (files.folder / DESCRIBED).unlink()
    (files.folder / DESCRIBED).symlink_to("/etc/passwd")
    again = registry.files_of("1", tmp_path / "models")
    assert again.weights.read_bytes() == whole
    assert not (again.folder / "code/json.py").exists()
    assert not (again.folder / DESCRIBED).is_symlink()


@pytest.fixture(scope="module")
def old_version(embedded: Services, tmp_path_factory: pytest.TempPathFactory) -> tuple[CheckpointManifest, Path]:
    """Version 1 of "old" as celebdit registered it before versions had manifests, with code that leaves a mark; and the mark's path."""
    found, folder = embedded.wait(), tmp_path_factory.mktemp("old")
    with pytest.MonkeyPatch.context() as patch:
        for key, value in found.environment.items():
            patch.setenv(key, value)
        context = registry_context(found, folder)
        checkpoint, model = packaged(context, folder, seed=73)
        (model / SERVING).write_bytes(payload(folder / "marker", (model / SERVING).read_bytes()))
        Registry(context.tracking, "old").ensure("old")
        run_id, model_id = logged_model(context, checkpoint)
        client = context.tracking.client
        client.log_model_artifacts(model_id, str(model))
        client.create_model_version("old", f"models:/{model_id}", run_id, model_id=model_id, tags=tags_of(checkpoint).to_mlflow())
        plain_mlflow_loads("models:/old/1")
    assert (folder / "marker").exists(), "the code is live"
    (folder / "marker").unlink()
    return checkpoint, folder / "marker"


@pytest.mark.fault
@pytest.mark.slow
def test_an_old_version_lends_its_weights_and_never_its_code(
    old_version: tuple[CheckpointManifest, Path], context: StepContext, tmp_path: Path
) -> None:
    checkpoint, marker = old_version
    weights = find_weights("models:/old/1", ema=None, context=context)
    assert weights.generator(torch.device("cpu")).draw(SAMPLING, [0], pass_images=1).shape == (1, 3, 16, 16)
    registry = Registry(context.tracking, "old")
    champion, _ = open_champion(registry, registry.version("1"), tmp_path / "champion")
    assert champion.checkpoint.digest == checkpoint.digest
    files = registry.files_of("1", tmp_path / "files")
    assert files.manifest_sha256 is None
    assert {path.name for path in files.folder.rglob("*") if path.is_file()} == {WEIGHTS_FILE, "description.json"}
    ready = servable(files, tmp_path)
    assert ready.manifest_sha256 is not None
    assert (ready.folder / SERVING).read_bytes() != b""
    plain_mlflow_loads(str(ready.folder))
    assert not marker.exists(), "what is served is the code of this installation"


@pytest.mark.parametrize("store", ["", "s3://a-bucket-that-was-moved/"])
@pytest.mark.fault
@pytest.mark.slow
def test_other_weights_with_a_fitting_description_in_an_old_version_are_refused(
    old_version: tuple[CheckpointManifest, Path], context: StepContext, tmp_path: Path, store: str
) -> None:
    """Without a manifest the checkpoint tells which weights were registered; its address may be that of an old place of the store."""
    checkpoint, _ = old_version
    other, model = packaged(context, tmp_path, seed=76 if store else 75)
    _, model_id = logged_model(context, other)
    context.tracking.client.log_model_artifacts(model_id, str(model))
    tags = replace(tags_of(other), checkpoint_digest=checkpoint.digest, checkpoint_uri=f"{store}{checkpoint.uri}")
    made = context.tracking.client.create_model_version("old", f"models:/{model_id}", model_id=model_id, tags=tags.to_mlflow())
    with pytest.raises(DataRefused, match="are not those of its checkpoint"):
        Registry(context.tracking, "old").files_of(made.version, tmp_path / "files")


@pytest.mark.fault
@pytest.mark.slow
def test_a_version_whose_files_are_gone_is_registered_again(context: StepContext, tmp_path: Path) -> None:
    checkpoint = commit_checkpoint(context, tmp_path, seed=74)
    assert registered(context, checkpoint, "lost") == "1"
    registry = Registry(context.tracking, "lost")
    prefix = stored_at(registry.version("1"))
    assert context.store.list(prefix)
    for item in context.store.list(prefix):
        context.store.delete(item.uri)
    assert registered(context, checkpoint, "lost") == "2"
    assert any("registering the checkpoint again" in note for note in notes(context))
    assert registry.aliases() == {"challenger": "2"}
    assert registry.files_of("2", tmp_path / "files").description.checkpoint_digest == checkpoint.digest
    assert "lacks" in registry.version("1").tags["files.lost"]
    assert registered(context, checkpoint, "lost") == "2", "once"
