"""Versions on a real MLflow server: what is stored, tried out and refused, and one version however many register it."""

import hashlib
import json
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import yaml
from celebdit_testing.recipes import DIGEST, dataset_manifest, tiny_network
from celebdit_testing.registered import SAMPLING, description_of, passed, registered, registered_faces, registry_context, report_of
from celebdit_testing.steps import notes, step_context
from celebdit_testing.trained import commit_checkpoint

from components.errors import BadInput, DataRefused
from components.evaluate.champion import NotMeasurable, open_champion
from components.manifests import CheckpointManifest
from components.register.register import run as register
from components.registry.client import Registry
from components.registry.config import RegistryConfig
from components.registry.tags import VersionTags
from components.registry.version_files import DESCRIPTION_FILE, WEIGHTS_FILE
from components.runtime.context import StepContext
from components.storage import file_sha256
from components.system.work_folders import WorkFolder
from components.tracking.logged_models import LoggedModels
from components.weights.find import find_weights
from pipeline.services import Endpoints, Services


@pytest.fixture
def context(endpoints: Endpoints, tmp_path: Path) -> StepContext:
    return registry_context(endpoints, tmp_path)


@pytest.fixture(scope="module")
def model(embedded: Services, session_folder: Path) -> CheckpointManifest:
    """The checkpoint that version 1 of "faces" was made from."""
    return registered_faces(embedded, session_folder / "faces")


def test_a_version_holds_a_card_a_signature_an_example_and_no_pickle(model: CheckpointManifest, context: StepContext) -> None:
    registry = Registry(context.tracking, "faces")
    version = registry.version("1")
    assert version.tags["serving.trial"] == "passed"
    assert registry.aliases() == {"challenger": "1"}
    files = registry.files_of("1", context.scratch(WorkFolder.MODELS, "looked-at"))
    kinds = {path.suffix for path in files.folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert kinds <= {"", ".py", ".safetensors", ".json", ".md", ".yaml", ".txt"}, kinds
    card = (files.folder / "README.md").read_text()
    assert card == version.description
    for text in (
        "# faces: face generator",
        "Licence of the data: **CC0-1.0**",
        '"depth": 1',
        "| `eval/fd_randconv_16` | 12.5 |",
        "## Samples",
        "## Limits",
        "celebdit serve faces@champion",
        model.digest,
    ):
        assert text in card, text
    description = yaml.safe_load((files.folder / "MLmodel").read_text())
    assert json.loads(description["signature"]["inputs"])[0]["name"] == "seed"
    assert {param["name"] for param in json.loads(description["signature"]["params"])} == {"num_steps", "sampler"}
    example = json.loads((files.folder / "serving_input_example.json").read_text())
    assert example["params"] == {"num_steps": 2, "sampler": "euler"}
    requirements = (files.folder / "requirements.txt").read_text()
    assert "psutil==" in requirements
    assert "kfp" not in requirements


@pytest.mark.fault
@pytest.mark.slow
def test_a_version_that_does_not_answer_is_refused_and_gets_no_alias(
    model: CheckpointManifest, context: StepContext, tmp_path: Path
) -> None:
    other = commit_checkpoint(context, tmp_path, seed=9)
    fits_not = other.model_copy(update={"recipe": other.recipe.model_copy(update={"network": tiny_network(width=64)})})
    with pytest.raises(DataRefused, match="does not work when it is served"):
        registered(context, fits_not, "broken")
    registry = Registry(context.tracking, "broken")
    assert registry.aliases() == {}
    assert registry.version("1").tags["serving.trial"].startswith("failed")


def test_racing_registrations_of_one_checkpoint_make_one_version(context: StepContext, tmp_path: Path) -> None:
    checkpoint = commit_checkpoint(context, tmp_path, seed=2)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "MLmodel").write_text("{}")
    Registry(context.tracking, "raced").ensure("raced")
    start = threading.Barrier(6)

    def submit(number: int) -> str:
        own = step_context("register", tmp_path / str(number), str(context.root), endpoint=None, mlflow_uri=context.settings.mlflow_uri)
        return stored(own, "raced", folder, checkpoint, wait=start.wait)

    with ThreadPoolExecutor(6) as pool:
        numbers = list(pool.map(submit, range(6)))
    registered_numbers = [str(version.version) for version in Registry(context.tracking, "raced").versions()]
    assert len(registered_numbers) == 1, registered_numbers
    assert set(numbers) == set(registered_numbers)
    assert stored(context, "raced", folder, checkpoint) == registered_numbers[0]


def stored(
    context: StepContext,
    name: str,
    folder: Path,
    checkpoint: CheckpointManifest,
    *,
    ema: str = "0.1",
    wait: Callable[[], object] = lambda: None,
) -> str:
    """Do what the register step does once it has built a model, and return the version's number."""
    report = report_of(checkpoint)
    report = report.model_copy(update={"protocol": report.protocol.model_copy(update={"ema": ema})})
    run_id = context.tracking.step_run("train", run_key=checkpoint.run_key).info.run_id
    model_id = LoggedModels(context.tracking).log_evaluation(run_id, report)
    wait()
    registry = Registry(context.tracking, name)
    tags = VersionTags(checkpoint_digest=checkpoint.digest, ema=ema)
    return str(registry.add_version(folder, tags=tags, model_id=model_id, run_id=run_id, description="").version)


def test_another_average_of_the_same_weights_is_a_version_of_its_own(context: StepContext, tmp_path: Path) -> None:
    checkpoint = commit_checkpoint(context, tmp_path, seed=4)
    registry = Registry(context.tracking, "two-averages")
    registry.ensure("two-averages")
    for number, ema in enumerate(("0.1", "none"), start=1):
        folder = tmp_path / ema
        (folder / "artifacts").mkdir(parents=True)
        (folder / "MLmodel").write_text("{}")
        (folder / "artifacts" / WEIGHTS_FILE).write_bytes(ema.encode())
        description_of(checkpoint, hashlib.sha256(ema.encode()).hexdigest()).write(folder / "artifacts" / DESCRIPTION_FILE)
        assert stored(context, "two-averages", folder, checkpoint, ema=ema) == str(number)
    for number, ema in (("1", "0.1"), ("2", "none")):
        assert registry.files_of(number, tmp_path / "fetched").weights.read_text() == ema, "neither overwrote the other"


def test_a_version_whose_description_has_no_format_number_is_drawn_from_and_measured(context: StepContext, tmp_path: Path) -> None:
    checkpoint = commit_checkpoint(context, tmp_path, seed=5)
    folder = tmp_path / "old"
    (folder / "artifacts").mkdir(parents=True)
    (folder / "MLmodel").write_text("{}")
    weights = tmp_path / checkpoint.run_key / "step-000000007" / "ema-0.1.safetensors"
    shutil.copyfile(weights, folder / "artifacts" / WEIGHTS_FILE)
    described = description_of(checkpoint, file_sha256(weights)).model_dump(mode="json", exclude={"format", "protocol"})
    (folder / "artifacts" / DESCRIPTION_FILE).write_text(json.dumps(described, sort_keys=True))
    registry = Registry(context.tracking, "before")
    registry.ensure("before")
    number = stored(context, "before", folder, checkpoint)
    tags = {"run_key": checkpoint.run_key, "checkpoint.uri": checkpoint.uri, "checkpoint.step": "7", "dataset.digest": DIGEST}
    for key, value in tags.items():
        context.tracking.client.set_model_version_tag("before", number, key, value)
    resolved = find_weights(f"models:/before/{number}", ema=None, context=context)
    assert resolved.generator(torch.device("cpu")).draw(SAMPLING, [0], pass_images=1).shape == (1, 3, 16, 16)
    champion, _ = open_champion(registry, registry.version(number), tmp_path / "champion")
    assert champion.model == checkpoint.recipe.model_spec == resolved.model
    assert (champion.checkpoint.digest, champion.sampling.ema) == (checkpoint.digest, "0.1")


def test_a_version_of_a_newer_format_is_refused_with_what_to_do(context: StepContext, tmp_path: Path) -> None:
    checkpoint = commit_checkpoint(context, tmp_path, seed=6)
    folder = tmp_path / "new"
    (folder / "artifacts").mkdir(parents=True)
    (folder / "MLmodel").write_text("{}")
    (folder / "artifacts" / WEIGHTS_FILE).write_bytes(b"weights")
    described = description_of(checkpoint, hashlib.sha256(b"weights").hexdigest()).model_dump(mode="json")
    (folder / "artifacts" / DESCRIPTION_FILE).write_text(json.dumps({**described, "format": 2}))
    registry = Registry(context.tracking, "newer")
    registry.ensure("newer")
    number = stored(context, "newer", folder, checkpoint)
    with pytest.raises(DataRefused, match=r"description\.json\.format.*given: 2") as refused:
        registry.files_of(number, tmp_path / "fetched")
    assert "newer" in str(refused.value.hint)
    with pytest.raises(NotMeasurable):
        open_champion(registry, registry.version(number), tmp_path / "champion")


@pytest.mark.parametrize("newer", [None, "1"])
def test_an_alias_whose_version_is_deleted_before_it_is_read_leads_to_the_newer_one_or_none(
    newer: str | None, context: StepContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, client, read = f"deleted-{newer}", context.tracking.client, Registry.aliases
    registry = Registry(context.tracking, name)
    registry.ensure("versions without files")
    for _ in range(2):
        client.create_model_version(name, source="s3://bucket/nowhere")
    registry.set_alias("champion", "2")

    def read_before_the_deletion(registry: Registry) -> dict[str, str]:
        aliases = read(registry)
        if aliases.get("champion") == "2":
            client.delete_model_version(name, "2")
            if newer is not None:
                registry.set_alias("champion", newer)
        return aliases

    monkeypatch.setattr(Registry, "aliases", read_before_the_deletion)
    if newer is not None:
        assert str(registry.resolve("champion").version) == newer
        return
    with pytest.raises(BadInput, match="has no alias 'champion'"):
        registry.resolve("champion")


def test_registering_twice_is_one_version_and_says_so(model: CheckpointManifest, context: StepContext) -> None:
    assert registered(context, model, "faces") == "1"
    assert any("already, nothing to do" in note for note in notes(context))
    other = report_of(model).model_copy(update={"checkpoint_digest": "0" * 64})
    config = RegistryConfig(model_name="faces")
    with pytest.raises(DataRefused, match="of another checkpoint"):
        register(model, dataset_manifest(), other, passed(model), SAMPLING, config, context)
    with pytest.raises(DataRefused, match=r"average '0\.1' of the weights was evaluated, sampling\.ema 'none'"):
        register(model, dataset_manifest(), report_of(model), passed(model), SAMPLING.model_copy(update={"ema": "none"}), config, context)
