"""A store that was copied to another bucket, and the old one taken away: every step and command goes on with the copy.

All requests go through a proxy, which sees one to the old store. Each test runs on two copies: of what this release stores, and of what
releases before it stored, absolute addresses of the old store in place of keys.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest
from celebdit_testing.damage import contents
from celebdit_testing.evaluations import SAMPLING, config, resources, run
from celebdit_testing.faults import Proxy, fault_proxy
from celebdit_testing.recipes import tiny_recipe
from celebdit_testing.registered import registered_faces, registry_context
from celebdit_testing.steps import notes, step_context
from celebdit_testing.trainings import run_train, small_faces

from components.gate.config import GateConfig
from components.gate.gate import run as gate
from components.ingest.record import record
from components.manifests import CheckpointManifest, DatasetManifest, EvaluationReport, Manifest
from components.registry.client import Registry
from components.registry.tags import VersionTags
from components.runtime.context import StepContext
from components.storage import connect
from components.train.reporting.sync import sync
from components.weights.find import find_weights
from model.canonical import canonical_json
from pipeline.services import Services

M = TypeVar("M", bound=Manifest)
OLD = "s3://bucket/old/team"
RECIPE = tiny_recipe(total_steps=2)
EVALUATION = config(num_images=4, num_reference=4, bootstrap_replicates=0)


@dataclass(frozen=True)
class Filled:
    """What the steps returned that filled the old store."""

    dataset: DatasetManifest
    checkpoint: CheckpointManifest
    report: EvaluationReport
    objects: dict[str, bytes]


def with_addresses(data: bytes) -> bytes:
    """Return JSON as earlier releases wrote it."""
    changed, count = re.subn(rb'(uri":\s*")(datasets|runs)/', rf"\1{OLD}/\2/".encode(), data)
    return changed if count else data


def as_stored_before(objects: dict[str, bytes]) -> dict[str, bytes]:
    """Return all objects of a store as earlier releases wrote them; a report's checksum is recorded beside it."""
    before = {key: with_addresses(data) if key.endswith(".json") else data for key, data in objects.items()}
    for key, data in before.items():
        folder, _, name = key.rpartition("/")
        if f"checksums/{folder}.json" in before and data != objects[key]:
            record = json.loads(before[f"checksums/{folder}.json"])
            if name in record["sha256"]:
                record["sha256"][name] = hashlib.sha256(data).hexdigest()
                before[f"checksums/{folder}.json"] = canonical_json(record)
    return before


def as_sent_before(manifest: M) -> M:
    """Return a step's output as an earlier release passed it on, for example out of Kubeflow Pipelines' cache."""
    sent = with_addresses(canonical_json(manifest.model_dump(mode="json")))
    assert OLD.encode() in sent
    return type(manifest).parse(sent, origin="cache")


@pytest.fixture(scope="module")
def proxy(rclone_endpoint: str) -> Iterator[Proxy]:
    with fault_proxy(rclone_endpoint) as running:
        connect(running.endpoint).client.create_bucket(Bucket="moved")
        yield running


@pytest.fixture(scope="module")
def filled(embedded: Services, rclone_endpoint: str, tmp_path_factory: pytest.TempPathFactory) -> Filled:
    """The old store, which does not exist any more when this returns."""
    folder, mlflow = tmp_path_factory.mktemp("old"), embedded.wait().mlflow_url
    context = step_context("train", folder, OLD, endpoint=rclone_endpoint, mlflow_uri=mlflow, run_id="before-the-move")
    dataset = small_faces(context)
    checkpoint = run_train(RECIPE, dataset, context)
    report = run(checkpoint, dataset, EVALUATION, SAMPLING, resources(), "nobody", context)
    objects = contents(context.store, context.root)
    for key in objects:
        context.store.delete(context.root.join(key))
    assert contents(context.store, context.root) == {}
    return Filled(dataset, checkpoint, report, objects)


@pytest.fixture(params=["keys", "addresses"])
def here(request: pytest.FixtureRequest, filled: Filled, proxy: Proxy, embedded: Services, tmp_path: Path) -> Iterator[StepContext]:
    """A new machine on a copy of the store at another place; it is an error if the old place is asked for anything."""
    place = f"s3://moved/{request.param}/{tmp_path.name}"
    mlflow = embedded.wait().mlflow_url
    context = step_context("train", tmp_path, place, endpoint=proxy.endpoint, mlflow_uri=mlflow, run_id=f"moved-{tmp_path.name}")
    objects = filled.objects if request.param == "keys" else as_stored_before(filled.objects)
    for key, data in objects.items():
        context.store.put_bytes(context.root.join(key), data)
    proxy.requests.clear()
    yield context
    assert proxy.requests
    assert [request for request in proxy.requests if " /bucket" in request] == []


def test_the_copies_hold_what_each_release_stores(filled: Filled) -> None:
    manifests = [key for key in filled.objects if re.search(r"dataset\.json|requests/|report\.json|spec\.json", key)]
    assert len(manifests) == 4
    before = as_stored_before(filled.objects)
    for key in manifests:
        assert b"s3://" not in filled.objects[key], key
        assert b'uri":"s3://bucket/old/team/' in before[key], key
    assert not [key for key, data in filled.objects.items() if b"s3://bucket" in data and not key.endswith(".html")]


def test_ingest_finds_its_dataset_and_mlflow_gets_its_key(filled: Filled, here: StepContext) -> None:
    before = contents(here.store, here.root)
    assert small_faces(here) == filled.dataset
    assert any("nothing to do" in note for note in notes(here))
    assert contents(here.store, here.root) == before
    tags = here.tracking.client.get_run(record(filled.dataset, here)).data.tags
    assert tags["dataset.uri"] == filled.dataset.uri == f"datasets/faces/{filled.dataset.digest}"


def test_a_finished_training_is_not_repeated_and_a_longer_one_resumes(filled: Filled, here: StepContext) -> None:
    launches: list[int] = []
    assert run_train(RECIPE, as_sent_before(filled.dataset), here, launches=launches) == filled.checkpoint
    assert launches == []
    longer = run_train(tiny_recipe(total_steps=3), as_sent_before(filled.dataset), here, launches=launches)
    assert (launches, longer.run_key, longer.step) == ([1], filled.checkpoint.run_key, 3)
    assert any("continuing from step 2 of 3" in note for note in notes(here))


def test_a_finished_evaluation_is_not_repeated_and_another_one_reads_the_copy(filled: Filled, here: StepContext, proxy: Proxy) -> None:
    checkpoint, dataset = as_sent_before(filled.checkpoint), as_sent_before(filled.dataset)
    assert run(checkpoint, dataset, EVALUATION, SAMPLING, resources(), "nobody", here) == filled.report
    assert any("was measured under this protocol already" in note for note in notes(here))
    scores = [request for request in proxy.requests if request.startswith("PUT ") and "/SCORE-" in request]
    assert scores, "for retention"
    other = run(checkpoint, dataset, config(num_images=2, num_reference=4, bootstrap_replicates=0), SAMPLING, resources(), "nobody", here)
    decision, page = gate(as_sent_before(other), GateConfig(no_worse_than_champion=False), "nobody", here)
    assert decision.page_uri is not None
    assert here.store.get_bytes(here.layout.locate(decision.page_uri)) == page.encode()
    assert page.count("data:image/png;base64,") == 2


def test_a_checkpoint_of_the_copy_is_sampled_by_each_of_its_names(filled: Filled, here: StepContext) -> None:
    key, uri = filled.checkpoint.run_key, filled.checkpoint.uri
    names = (key, uri, str(here.layout.locate(uri)))
    assert {find_weights(name, ema="0.1", context=here).digest for name in names} == {filled.checkpoint.digest}


def test_a_training_of_the_copy_is_described_in_mlflow(filled: Filled, here: StepContext) -> None:
    sync(filled.checkpoint.run_key, here)
    described = here.tracking.training_run(filled.checkpoint.run_key)
    assert described is not None
    assert described.info.status == "FINISHED"


@pytest.mark.fault
@pytest.mark.slow
def test_a_version_that_was_registered_before_the_move_is_served_from_the_copy(
    embedded: Services, session_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = registered_faces(embedded, session_folder / "faces")
    endpoints = embedded.wait()
    for name, value in endpoints.environment.items():
        monkeypatch.setenv(name, value)
    old = registry_context(endpoints, tmp_path / "old")
    with fault_proxy(endpoints.s3_url) as proxy:
        new = step_context(
            "serve", tmp_path / "new", "s3://celebdit/moved-version", endpoint=proxy.endpoint, mlflow_uri=endpoints.mlflow_url
        )
        for folder in (old.layout.version_records, old.layout.locate(checkpoint.uri)):
            for key, data in contents(old.store, folder).items():
                new.store.put_bytes(new.layout.locate(old.layout.key_of(folder.join(key))), data)
        proxy.requests.clear()
        weights = find_weights("models:/faces/1", ema=None, context=new)
        assert weights.digest == checkpoint.digest
        tags = Registry(new.tracking, "faces").version("1").tags
        assert VersionTags.from_mlflow(tags).checkpoint_uri == checkpoint.uri
        assert any("/celebdit/moved-version/" in request for request in proxy.requests)
        assert [request for request in proxy.requests if "/celebdit/moved-version/" not in request] == []
