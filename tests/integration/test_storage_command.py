"""`celebdit storage` on real servers: what it lists, what it refuses, and what is left after it deleted."""

import fcntl
import os
import subprocess
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import pytest
from celebdit_testing.command import COMMAND, Finished, celebdit_here
from celebdit_testing.recipes import tiny_recipe
from celebdit_testing.steps import keys_below, step_context
from celebdit_testing.trainings import run_train, small_faces

from components.errors import EXIT_OK, BadInput, Interrupted
from components.ingest.record import record
from components.registry import origins
from components.registry.client import Registry
from components.runtime.context import StepContext
from components.storage import StoreUri
from components.storage.unfinished_uploads import begin_upload, unfinished_uploads
from components.stores import abandoned_uploads
from components.stores.checkpoints import CheckpointStore
from components.stores.deletion import delete_objects
from components.tracking.tags import TAG_KIND, TAG_RUN_KEY
from components.train.reporting.sync import sync
from components.train.spec import newest_spec, store_spec
from model.config import Recipe
from model.distill_config import Teacher
from pipeline.home import LOCK
from pipeline.services import Endpoints
from pipeline.stored import removal
from pipeline.sweeps.mlflow_log import TAG_STATUS, TAG_SWEEP

pytestmark = [pytest.mark.fault, pytest.mark.slow]

STUDENT = "fedcba9876543210"


class Trained:
    """A finished training in a store of its own, and the command line on its servers."""

    def __init__(self, recipe: Recipe, context: StepContext, home: Path) -> None:
        self.recipe, self.context, self.home = recipe, context, home
        self.dataset = small_faces(context)
        self.checkpoint = run_train(recipe, self.dataset, context)
        context.tracking.set_status(context.tracking.pipeline_run().info.run_id, "FINISHED")
        self.capture: pytest.CaptureFixture[str]

    @property
    def key(self) -> str:
        return self.checkpoint.run_key

    def celebdit(self, *arguments: str) -> Finished:
        return celebdit_here("storage", *arguments, home=self.home, capture=self.capture)

    def delete(self, *arguments: str) -> Finished:
        return self.celebdit("delete", "--yes", *arguments)

    def keys_of_run(self) -> list[str]:
        return keys_below(self.context.store, self.context.layout.run(self.key).prefix)


@pytest.fixture
def trained(endpoints: Endpoints, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Trained:
    store = f"{endpoints.environment['CELEBDIT_STORE']}/{tmp_path.name}"
    context = step_context("train", tmp_path, store, endpoint=endpoints.s3_url, mlflow_uri=endpoints.mlflow_url, run_id=tmp_path.name)
    for name, value in {**endpoints.environment, "CELEBDIT_STORE": store, "CELEBDIT_EXPERIMENT": "tests"}.items():
        monkeypatch.setenv(name, value)
    trained = Trained(tiny_recipe(total_steps=2, seed=sum(tmp_path.name.encode())), context, tmp_path / "home")
    trained.capture = capsys
    return trained


@pytest.fixture
def old(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything counts as written long ago."""
    monkeypatch.setattr(removal, "RECENT", timedelta(minutes=-5))


def test_the_list_names_runs_and_datasets_with_what_refers_to_them(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    for pages in ("_PAGE_MODELS", "_PAGE_VERSIONS"):
        monkeypatch.setattr(origins, pages, 1)
    tags = {"run_key": trained.key}
    registry = Registry(trained.context.tracking, f"faces-{trained.key}")
    registry.ensure("faces")
    for _ in range(2):
        trained.context.tracking.client.create_model_version(registry.name, source="s3://bucket/nowhere", tags=tags)
    registry.set_alias("challenger", "1")
    foreign = trained.context.root / "mlflow" / "model.pkl"
    trained.context.store.put_bytes(foreign, b"12345")

    listed = trained.celebdit("list", "--json")
    assert listed.code == EXIT_OK, listed.err
    (run,), (dataset,), others = listed.json["runs"], listed.json["datasets"], listed.json["others"]
    assert (run["run_key"], run["state"]) == (trained.key, "FINISHED")
    versions = [
        {"model": registry.name, "version": "1", "aliases": ["challenger"]},
        {"model": registry.name, "version": "2", "aliases": []},
    ]
    assert run["versions"] == versions
    assert (
        run["size_bytes"]
        == sum(run["parts"].values())
        == sum(item.size_bytes for item in trained.context.store.list(trained.context.layout.run(trained.key).prefix))
    )
    assert (dataset["digest"], dataset["runs"]) == (trained.dataset.digest, [trained.key])
    assert others["foreign"]["size_bytes"] == 5
    every = trained.context.store.list(trained.context.root)
    assert listed.json["size_bytes"] == sum(item.size_bytes for item in every)
    for text in (trained.key, "FINISHED", f"version 1 of {registry.name} (challenger)", f"trained on by {trained.key}"):
        assert text in listed.err, text


def test_an_imported_checkpoint_is_listed_with_the_state_of_its_import(trained: Trained) -> None:
    context = trained.context
    context.store.put_bytes(context.layout.run(STUDENT).checkpoints.join("step-000000001/imported/COMMIT.json"), b"{}")
    with context.tracking.mark_running(context.tracking.step_run("import", run_key=STUDENT)):
        pass
    listed = trained.celebdit("list", "--json").json["runs"]
    assert {run["run_key"]: run["state"] for run in listed} == {trained.key: "FINISHED", STUDENT: "FINISHED"}


def test_what_was_just_written_stays_unless_it_is_forced(trained: Trained) -> None:
    before = trained.keys_of_run()
    refused = trained.delete(trained.key, "--part", "checkpoints")
    assert refused.code == BadInput.exit_code, refused.err
    assert "it was written 0 minutes ago" in refused.err
    assert trained.keys_of_run() == before
    forced = trained.delete(trained.key, "--part", "checkpoints", "--force")
    assert forced.code == EXIT_OK
    assert "although it was written" in forced.err
    assert not [key for key in trained.keys_of_run() if key.startswith("checkpoints/")]
    assert [key for key in trained.keys_of_run() if key.startswith("attempts/")]


@pytest.mark.usefixtures("old")
def test_what_runs_or_is_needed_stays(trained: Trained) -> None:
    context, before = trained.context, trained.keys_of_run()
    run = context.tracking.training_run(trained.key)
    assert run is not None
    spec = newest_spec(trained.key, context)
    teacher = Teacher(run_key=trained.key, step=2, ema="none", weights_sha256="a" * 64)
    store_spec(spec.model_copy(update={"run_key": STUDENT, "teacher": teacher}), context.store, context.layout)
    context.tracking.set_status(run.info.run_id, "RUNNING")

    refused = trained.delete(trained.key[:6])
    assert refused.code == BadInput.exit_code, refused.err
    for reason in (f"MLflow says that {context.settings.run_id} is running", f"it is the teacher of {STUDENT}"):
        assert reason in refused.err, reason
    assert trained.keys_of_run() == before
    context.tracking.set_status(run.info.run_id, "FINISHED")
    refused = trained.delete("--dataset", trained.dataset.digest[:8])
    assert f"runs that are stored were trained on it: {', '.join(sorted([trained.key, STUDENT]))}" in refused.err
    assert context.store.exists(context.layout.locate(trained.dataset.uri) / "dataset.json")


@pytest.mark.usefixtures("old")
def test_a_trial_stays_while_its_sweep_goes_on_unless_it_was_stopped(trained: Trained) -> None:
    """A finished trial trains on from its checkpoint on the next rung, perhaps hours later; its tag names the runs of all its seeds."""
    client, tracking = trained.context.tracking.client, trained.context.tracking
    experiment = client.create_experiment(f"sweep/{trained.key}")
    tags = {TAG_SWEEP: trained.key}
    sweep = client.create_run(experiment, run_name="rates", tags={**tags, TAG_KIND: "sweep"})
    trial = client.create_run(experiment, tags={**tags, TAG_KIND: "trial", TAG_RUN_KEY: f"{STUDENT},{trained.key}", TAG_STATUS: "kept"})
    client.set_terminated(trial.info.run_id)
    refused = trained.delete(trained.key, "--part", "checkpoints")
    assert refused.code == BadInput.exit_code
    assert "MLflow says that rates is running" in refused.err
    client.set_tag(trial.info.run_id, TAG_STATUS, "stopped")
    assert trained.delete(trained.key, "--part", "samples").code == EXIT_OK
    client.set_tag(trial.info.run_id, TAG_STATUS, "kept")
    tracking.set_status(sweep.info.run_id, "KILLED")
    assert trained.delete(trained.key, "--part", "checkpoints").code == EXIT_OK


@pytest.mark.usefixtures("old")
def test_a_dataset_stays_while_a_pipeline_run_that_ingested_it_goes_on(trained: Trained, tmp_path: Path) -> None:
    settings = trained.context.settings
    waiting = step_context(
        "ingest",
        tmp_path / "other",
        settings.store_uri,
        endpoint=settings.s3_endpoint,
        mlflow_uri=settings.mlflow_uri,
        run_id=f"w{tmp_path.name}",
    )
    record(trained.dataset, waiting)
    refused = trained.delete(trained.key, "--dataset", trained.dataset.digest)
    assert refused.code == BadInput.exit_code
    assert f"MLflow says that w{tmp_path.name} is running" in refused.err
    waiting.tracking.set_status(waiting.tracking.pipeline_run().info.run_id, "FINISHED")
    assert trained.delete(trained.key, "--dataset", trained.dataset.digest).code == EXIT_OK


@pytest.mark.usefixtures("old")
def test_a_dataset_with_two_names_is_deleted_under_both(trained: Trained) -> None:
    context = trained.context
    other = context.layout.dataset("other-name") / trained.dataset.digest / "dataset.json"
    context.store.put_bytes(other, b"{}")
    deleted = trained.delete(trained.key, "--dataset", trained.dataset.digest[:16])
    assert deleted.code == EXIT_OK, deleted.err
    assert not context.store.exists(other)
    assert not context.store.exists(context.layout.locate(trained.dataset.uri) / "dataset.json")


@pytest.mark.usefixtures("old")
def test_uploads_of_what_is_deleted_are_aborted_and_no_others(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(abandoned_uploads, "_ABANDONED", timedelta(days=-1))
    store, run = trained.context.store, trained.context.layout.run(trained.key).prefix
    others = [
        begin_upload(store, uri) for uri in (trained.context.root / "mlflow" / "model.bin", trained.context.layout.runs / STUDENT / "x")
    ]
    begin_upload(store, run / "checkpoints" / "x")
    assert trained.delete(trained.key).code == EXIT_OK
    left = unfinished_uploads(store, trained.context.root)
    assert left is not None
    assert sorted(upload.id for upload in left) == sorted(upload.id for upload in others)


@pytest.mark.usefixtures("old")
def test_a_dataset_stays_if_a_specification_is_damaged(trained: Trained) -> None:
    """Of an attempt the one before counts; where there is none, the run may have been trained on any dataset."""
    context, attempts = trained.context, trained.context.layout.run(trained.key).attempts
    (spec,) = [item.uri for item in context.store.list(attempts)]
    context.store.put_bytes(attempts / "99990101T000000-a" / spec.name, b"{}")
    refused = trained.delete("--dataset", trained.dataset.digest)
    assert f"runs that are stored were trained on it: {trained.key}" in refused.err, refused.err
    context.store.put_bytes(spec, b"damaged")
    refused = trained.delete("--dataset", trained.dataset.digest)
    assert f"what these runs were trained on is not known: {trained.key}" in refused.err, refused.err
    assert refused.code == BadInput.exit_code
    assert f"their specifications cannot be read: {trained.key}" in trained.celebdit("list").err
    assert context.store.exists(context.layout.locate(trained.dataset.uri) / "dataset.json")


@pytest.mark.usefixtures("old")
def test_a_deleted_run_and_dataset_leave_nothing_and_are_made_again(trained: Trained, tmp_path: Path) -> None:
    """From another machine: the work folder of the first one still has its newest checkpoint."""
    context = trained.context
    context.store.put_bytes(context.layout.quarantine / "20260101T000000-aa" / "x.tar", b"damaged")
    others = [context.root / "mlflow" / "model.pkl", context.layout.version_records / "a.json", context.layout.runs / "notes"]
    others.append(context.layout.run(STUDENT).checkpoints.join("step-000000001/imported/COMMIT.json"))
    for uri in others:
        context.store.put_bytes(uri, b"stays")

    deleted = trained.delete(trained.key, "--dataset", trained.dataset.digest, "--quarantine", "--json")
    assert deleted.code == EXIT_OK, deleted.err
    assert trained.keys_of_run() == []
    left = keys_below(context.store, context.root)
    assert {uri.relative_to(context.root) for uri in others} <= set(left)
    assert not [key for key in left if key.startswith(("references/", "quarantine/", "checksums/")) or key.endswith("dataset.json")]
    assert [item["objects"] > 0 for item in deleted.json["deleted"]] == [True, True, True]

    settings = context.settings
    elsewhere = step_context(
        "train", tmp_path / "elsewhere", settings.store_uri, endpoint=settings.s3_endpoint, mlflow_uri=settings.mlflow_uri, run_id="again"
    )
    launches: list[int] = []
    dataset = small_faces(elsewhere)
    again = run_train(trained.recipe, dataset, elsewhere, launches=launches)
    assert (dataset.digest, again.digest, len(launches)) == (trained.dataset.digest, trained.checkpoint.digest, 1)


@pytest.mark.usefixtures("old")
def test_a_finished_training_whose_checkpoints_were_deleted_stays_finished(trained: Trained, tmp_path: Path) -> None:
    """`celebdit sync` from a machine that has none of them either."""
    settings = trained.context.settings
    assert trained.delete(trained.key, "--part", "checkpoints").code == EXIT_OK
    elsewhere = step_context(
        "sync", tmp_path / "elsewhere", settings.store_uri, endpoint=settings.s3_endpoint, mlflow_uri=settings.mlflow_uri, run_id="sync"
    )
    assert sync(trained.key, elsewhere) == 0
    run = elsewhere.tracking.training_run(trained.key)
    assert run is not None
    assert run.info.status == "FINISHED"


@pytest.mark.usefixtures("old")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ffffffffffffffff"], "the store has no run 'ffffffffffffffff'"),
        (["../../datasets"], "the store has no run '../../datasets'"),
        ([""], "is empty"),
        (["--dataset", "ffff"], "the store has no dataset 'ffff'"),
        (["--dataset", ""], "is empty"),
        (["--part", "samples"], "--part needs a run"),
        ([], "nothing to delete is named"),
        (["KEY", "ffff"], "the store has no run 'ffff'"),
    ],
)
def test_a_name_of_nothing_deletes_nothing(trained: Trained, arguments: list[str], message: str) -> None:
    before = [item.uri for item in trained.context.store.list(trained.context.root)]
    refused = trained.delete(*(trained.key if word == "KEY" else word for word in arguments))
    assert refused.code == BadInput.exit_code, refused.err
    assert message in refused.err
    assert [item.uri for item in trained.context.store.list(trained.context.root)] == before


def test_without_a_terminal_nothing_is_deleted_unless_it_is_confirmed(trained: Trained) -> None:
    before = trained.keys_of_run()
    refused = trained.celebdit("delete", trained.key, "--force")
    assert refused.code == BadInput.exit_code
    assert "needs a terminal that can answer, or --yes" in refused.err
    assert trained.keys_of_run() == before


@pytest.mark.parametrize(("answer", "code"), [("n", Interrupted.exit_code), ("", Interrupted.exit_code), ("y", EXIT_OK)])
def test_a_person_is_asked(trained: Trained, answer: str, code: int) -> None:
    main, terminal = os.openpty()
    command = [*COMMAND, "storage", "delete", trained.key, "--part", "checkpoints", "--force", "--home", str(trained.home)]
    process = subprocess.Popen(command, stdin=terminal, stdout=terminal, stderr=terminal)
    os.close(terminal)
    output = b""
    while b"Delete? [y/N]" not in output:
        output += os.read(main, 65536)
    assert f"checkpoints of run {trained.key}: ".encode() in output
    os.write(main, f"{answer}\n".encode())
    assert process.wait(60) == code
    os.close(main)
    assert bool([key for key in trained.keys_of_run() if key.startswith("checkpoints/")]) == (code != EXIT_OK)


def test_nothing_of_the_home_is_locked_while_a_person_is_asked(tmp_path: Path) -> None:
    """Embedded servers: other commands on the same home would wait for the answer, without a word."""
    home, run = tmp_path / "home", "0123456789abcdef"
    weights = home / "s3" / "celebdit" / "main" / "runs" / run / "checkpoints" / "a" / "b"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"weights")
    for folder in (home, *(parent for parent in weights.parents if parent.is_relative_to(home))):
        folder.chmod(0o700)
    main, terminal = os.openpty()
    command = [*COMMAND, "storage", "delete", run, "--force", "--home", str(home)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("CELEBDIT_", "MLFLOW_", "AWS_"))}
    process = subprocess.Popen(command, stdin=terminal, stdout=terminal, stderr=terminal, env=environment)
    os.close(terminal)
    output = b""
    while b"Delete? [y/N]" not in output:
        output += os.read(main, 65536)
    with (home / LOCK).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.write(main, b"y\n")
    assert process.wait(120) == EXIT_OK
    os.close(main)
    assert not weights.exists()


def test_what_an_interrupted_deletion_leaves_is_not_read(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that fails again and again: at no time a checkpoint counts that cannot be read."""
    context, run = trained.context, trained.context.layout.run(trained.key)
    home = CheckpointStore(context.store, run.checkpoints)
    assert home.list_committed()
    delete, allowed = context.store.delete, [0]

    def fail_later(uri: StoreUri) -> None:
        allowed[0] -= 1
        if allowed[0] < 0:
            raise ConnectionError(str(uri))
        delete(uri)

    monkeypatch.setattr(context.store, "delete", fail_later)
    failures = 0
    while uris := [item.uri for item in context.store.list(run.prefix)]:
        allowed[0] = 2
        with suppress(ConnectionError):
            delete_objects(context.store, uris)
            continue
        failures += 1
        for entry in home.list_committed():
            home.verify(entry.uri)
    assert failures > 2
