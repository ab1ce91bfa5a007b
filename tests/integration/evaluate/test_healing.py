"""Finished evaluations whose files were damaged or lost, and two processes that measure and register the same at once."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from celebdit_testing import evaluations
from celebdit_testing.damage import KINDS, contents, damage
from celebdit_testing.evaluations import SAMPLING, config, resources, run
from celebdit_testing.steps import notes
from celebdit_testing.trained import commit_checkpoint

from components.errors import DataRefused
from components.evaluate.reference import reference_uri
from components.evaluate.samples import SampleStore
from components.evaluate.spec import REPORT_FILE, EvaluateSpec
from components.gate.config import GateConfig
from components.gate.gate import run as gate
from components.manifests import CheckpointManifest, DatasetManifest, EvaluationReport, RegisteredVersion
from components.registry.client import Registry
from components.runtime.context import StepContext
from components.stores.checkpoint_names import QUARANTINE_FILE
from pipeline.services import Endpoints

pytestmark = [pytest.mark.fault, pytest.mark.slow]

PART = "healing"
place = partial(evaluations.place, part=PART)
CONFIG = config(num_images=8, bootstrap_replicates=2)
REPOSITORY = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def checkpoint(environment: Endpoints, folder: Path, dataset: DatasetManifest) -> CheckpointManifest:
    return commit_checkpoint(place(environment, folder), folder, seed=107, dataset_digest=dataset.digest)


@pytest.fixture(scope="module")
def whole(environment: Endpoints, folder: Path, dataset: DatasetManifest, checkpoint: CheckpointManifest) -> EvaluationReport:
    return run(checkpoint, dataset, CONFIG, SAMPLING, resources(), "nobody", place(environment, folder / "first"))


@pytest.fixture
def here(environment: Endpoints, tmp_path: Path) -> StepContext:
    return place(environment, tmp_path)


def moved_to_quarantine(context: StepContext, name: str) -> list[bytes]:
    return [data for key, data in contents(context.store, context.layout.quarantine).items() if key.endswith(f"/{name}")]


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_evaluation_is_made_again_with_the_same_bytes(
    here: StepContext, dataset: DatasetManifest, checkpoint: CheckpointManifest, whole: EvaluationReport, folder: Path, kind: str
) -> None:
    home = here.layout.locate(whole.uri)
    intact = contents(here.store, home)
    other = run(checkpoint, dataset, config(num_images=4, bootstrap_replicates=2), SAMPLING, resources(), "nobody", here)
    others = contents(here.store, here.layout.locate(other.uri))
    assert sorted(intact) == ["grid.png", "nearest.png", REPORT_FILE]
    for name in intact:
        damage(here.store, home / name, kind, other=others[name])
        damaged = contents(here.store, home).get(name)
        assert run(checkpoint, dataset, CONFIG, SAMPLING, resources(), "nobody", here) == whole
        assert contents(here.store, home) == intact
        if damaged is not None:
            assert damaged in moved_to_quarantine(here, name)
    noted = [note for note in notes(here) if "is damaged and is made again" in note]
    assert len(noted) == (3 if kind != "deleted" else 2), "without a report there is no evaluation, only its parts"


def test_changed_metrics_in_a_report_are_not_believed(
    here: StepContext, dataset: DatasetManifest, checkpoint: CheckpointManifest, whole: EvaluationReport
) -> None:
    uri = here.layout.locate(whole.uri) / REPORT_FILE
    better = whole.model_copy(update={"metrics": {**whole.metrics, whole.headline: 0.001}})
    here.store.put_bytes(uri, better.model_dump_json().encode())
    assert run(checkpoint, dataset, CONFIG, SAMPLING, resources(), "nobody", here) == whole


def spec_of(checkpoint: CheckpointManifest, dataset: DatasetManifest) -> EvaluateSpec:
    return EvaluateSpec(
        checkpoint=checkpoint,
        model=checkpoint.recipe.model_spec,
        dataset=dataset,
        evaluation=CONFIG,
        sampling=SAMPLING,
        resources=resources(),
    )


@pytest.mark.parametrize("name", ["features.npy", "mirrored.npy", "moments.npy", "reference.json"])
@pytest.mark.parametrize("kind", ["one bit", "deleted"])
def test_damaged_features_of_the_references_are_computed_again_at_once(
    here: StepContext, dataset: DatasetManifest, checkpoint: CheckpointManifest, whole: EvaluationReport, name: str, kind: str
) -> None:
    home = reference_uri(spec_of(checkpoint, dataset), here.layout)
    intact = contents(here.store, home)
    here.store.delete(here.layout.locate(whole.uri) / REPORT_FILE)
    damage(here.store, home / name, kind)
    assert run(checkpoint, dataset, CONFIG, SAMPLING, resources(), "nobody", here) == whole
    assert contents(here.store, home) == intact


def once(action: Callable[[], None]) -> Callable[[], None]:
    actions = [action]
    return lambda: actions.pop()() if actions else None


@pytest.mark.parametrize("kind", ["one bit", "deleted"])
def test_samples_that_are_damaged_after_they_were_drawn_are_drawn_again_at_once(
    here: StepContext, dataset: DatasetManifest, checkpoint: CheckpointManifest, whole: EvaluationReport, kind: str
) -> None:
    samples = spec_of(checkpoint, dataset).samples_uri(here.layout)
    intact = contents(here.store, samples)
    here.store.delete(here.layout.locate(whole.uri) / REPORT_FILE)
    harm = once(lambda: damage(here.store, samples / f"{SampleStore.name(range(4))}.npy", kind))
    assert run(checkpoint, dataset, CONFIG, SAMPLING, resources(), "nobody", here, then=harm) == whole
    assert contents(here.store, samples) == intact
    assert any("are corrupt or incomplete: made again" in note for note in notes(here))


def test_a_checkpoint_that_is_damaged_is_quarantined_for_the_train_step(
    here: StepContext, tmp_path: Path, dataset: DatasetManifest
) -> None:
    checkpoint = commit_checkpoint(here, tmp_path, seed=404, dataset_digest=dataset.digest)
    uri = here.layout.locate(checkpoint.uri)
    damage(here.store, uri / "ema-0.1.safetensors", "one bit")
    with pytest.raises(DataRefused, match="is corrupt or incomplete") as refused:
        run(checkpoint, dataset, CONFIG, SAMPLING, resources(), "nobody", here)
    assert refused.value.hint == "run the train step again: it makes the checkpoint again"
    assert here.store.exists(uri / QUARANTINE_FILE)


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_page_of_the_gate_is_written_again(here: StepContext, whole: EvaluationReport, kind: str) -> None:
    config = GateConfig(no_worse_than_champion=False)
    decision, page = gate(whole, config, "nobody", here)
    assert decision.page_uri is not None
    uri = here.layout.locate(decision.page_uri)
    damage(here.store, uri, kind, other=b"<html></html>")
    damaged = None if kind == "deleted" else here.store.get_bytes(uri)
    assert gate(whole, config, "nobody", here) == (decision, page)
    assert here.store.get_bytes(uri) == page.encode()
    assert damaged is None or damaged in moved_to_quarantine(here, uri.name)


PAIR = """
import json, sys
from pathlib import Path
from celebdit_testing.evaluations import SAMPLING, config, resources, run
from celebdit_testing.registered import passed
from celebdit_testing.steps import step_context
import components.evaluate.measure, components.serving.register_version
from components.manifests import CheckpointManifest, DatasetManifest
from components.register.register import run as register
from components.registry.config import RegistryConfig

where = json.loads(sys.argv[1])
folder = Path(where["folder"])
context = step_context("evaluate", folder, where["store"], endpoint=where["s3"], mlflow_uri=where["mlflow"], run_id=sys.argv[2])
checkpoint = CheckpointManifest.load(folder / "checkpoint.json")
dataset = DatasetManifest.load(folder / "dataset.json")
print("ready", flush=True)
sys.stdin.readline()
report = run(checkpoint, dataset, config(num_images=8, bootstrap_replicates=2), SAMPLING, resources(), "pair", context)
print(report.model_dump_json(), flush=True)
sys.stdin.readline()
version = register(checkpoint, dataset, report, passed(checkpoint), SAMPLING, RegistryConfig(model_name="pair"), context)
print(version.model_dump_json(), flush=True)
"""


def test_two_processes_in_one_work_folder_measure_and_register_the_same_once(
    environment: Endpoints, here: StepContext, tmp_path: Path, dataset: DatasetManifest
) -> None:
    checkpoint = commit_checkpoint(here, tmp_path, seed=808, dataset_digest=dataset.digest)
    checkpoint.dump(tmp_path / "checkpoint.json")
    dataset.dump(tmp_path / "dataset.json")
    where = {"folder": str(tmp_path), "store": str(here.root), "s3": environment.s3_url, "mlflow": environment.mlflow_url}
    search = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests" / "support")])
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PAIR, json.dumps(where), f"pair-{number}"],
            env={**os.environ, "PYTHONPATH": search},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]

    def lines() -> list[str]:
        return [process.stdout.readline() for process in processes if process.stdout is not None]

    def release() -> None:
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()

    try:
        assert lines() == ["ready\n"] * 2
        release()
        reports = [EvaluationReport.model_validate_json(line) for line in lines()]
        assert reports[0].metrics == reports[1].metrics
        release()
        versions = [RegisteredVersion.model_validate_json(line) for line in lines()]
        assert versions[0] == versions[1]
        assert [process.wait(60) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert [str(version.version) for version in Registry(here.tracking, "pair").versions()] == ["1"]
    for what in ("measures the same checkpoint", "registers the same weights"):
        assert sum(f"another process {what}" in note for note in notes(here)) == 1
    for part in ("evaluations", "register", "trials", "images"):
        left = [path.name for path in (here.settings.work_dir / part).iterdir() if path.suffix != ".lock"]
        assert left == [], part
