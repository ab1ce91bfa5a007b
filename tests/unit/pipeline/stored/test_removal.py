"""What speaks against deleting a run, parts of it, or a dataset."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from components.registry.origins import RegisteredVersion
from components.storage import StoreUri
from components.storage.uri import StoredObject
from components.stores.usage import PARTS, Stored, StoredRun, usage_of
from pipeline.stored.references import References
from pipeline.stored.removal import parts_of, reasons_to_keep_dataset, reasons_to_keep_run

RUN, STUDENT = "0123456789abcdef", "fedcba9876543210"
DIGEST = "d" * 64
NOW = datetime(2026, 11, 28, 12, tzinfo=UTC)
ROOT = StoreUri("bucket", "")
NO_REFERENCES = References(trainings={}, students={}, versions={}, states={}, running={}, readers={}, unknown=())
CHAMPION = RegisteredVersion("faces", "3", ("champion",))


def run_of(*parts: str, age: timedelta = timedelta(days=1)) -> StoredRun:
    objects = [StoredObject(ROOT.join(f"runs/{RUN}/{part}/a/b"), 1, modified=NOW - age) for part in parts]
    return usage_of(objects, ROOT).runs[RUN]


def reasons(
    *parts: str, run: StoredRun | None = None, references: References = NO_REFERENCES, running: list[str] | None = None
) -> list[str]:
    references = replace(references, running={RUN: running} if running else {})
    return reasons_to_keep_run(RUN, run_of(*PARTS) if run is None else run, parts, references, NOW)


def test_nothing_speaks_against_a_run_that_nothing_uses() -> None:
    assert reasons() == []


@pytest.mark.parametrize("parts", [(), ("samples",), PARTS])
def test_a_run_that_is_under_way_stays_with_all_its_parts(parts: tuple[str, ...]) -> None:
    assert reasons(*parts, running=["smoke-1"]) == ["MLflow says that smoke-1 is running"]
    assert reasons(*parts, run=run_of(*PARTS, age=timedelta(minutes=59, seconds=59))) == ["it was written 59 minutes ago"]
    assert reasons(*parts, run=run_of(*PARTS, age=timedelta(minutes=60))) == []


def test_an_object_from_the_future_was_written_just_now() -> None:
    assert reasons(run=run_of("samples", age=timedelta(minutes=-5))) == ["it was written 0 minutes ago"]


def test_metrics_that_did_not_reach_mlflow_are_uploaded_first() -> None:
    run = run_of("samples", "journal")
    assert reasons(run=run) == [f"1 object of its journal did not reach MLflow: `celebdit sync {RUN}`"]
    assert reasons("samples", run=run) == [], "the journal stays"


def test_a_teacher_keeps_its_checkpoints_and_snapshots() -> None:
    """A student of `RUN_KEY@STEP` may learn from a snapshot."""
    references = References(trainings={}, students={RUN: [STUDENT]}, versions={}, states={}, running={}, readers={}, unknown=())
    for parts in [(), ("checkpoints",), ("samples", "snapshots")]:
        assert reasons(*parts, references=references) == [f"it is the teacher of {STUDENT}"], parts
    assert reasons("samples", "averages", "evaluations", references=references) == []
    assert reasons(references=references.without([STUDENT])) == [], "a student that is deleted with it needs no teacher"


@pytest.mark.parametrize(
    ("parts", "refused"),
    [
        ((), True),
        (("checkpoints",), True),
        (("snapshots",), True),
        (("evaluations",), True),
        (("samples", "evaluations"), True),
        (("samples",), False),
        (("samples", "averages"), False),
    ],
)
def test_what_a_version_under_an_alias_comes_from_stays(parts: tuple[str, ...], refused: bool) -> None:
    references = References(trainings={}, students={}, versions={RUN: [CHAMPION]}, states={}, running={}, readers={}, unknown=())
    assert reasons(*parts, references=references) == (["version 3 of faces (champion) comes from it"] if refused else [])


def test_a_version_without_an_alias_has_files_of_its_own() -> None:
    version = RegisteredVersion("faces", "2", ())
    assert (
        reasons(references=References(trainings={}, students={}, versions={RUN: [version]}, states={}, running={}, readers={}, unknown=()))
        == []
    )


def test_a_dataset_stays_while_a_run_that_was_trained_on_it_is_stored() -> None:
    references = References(trainings={DIGEST: [RUN]}, students={}, versions={}, states={}, running={}, readers={}, unknown=())
    stored = Stored([StoredObject(ROOT / "a", 1, modified=NOW - timedelta(days=1))])
    assert reasons_to_keep_dataset(DIGEST, stored, references, NOW) == [f"runs that are stored were trained on it: {RUN}"]
    assert reasons_to_keep_dataset("e" * 64, stored, references, NOW) == []
    assert reasons_to_keep_dataset(DIGEST, stored, references.without({RUN}), NOW) == []


def test_a_dataset_stays_while_it_is_not_known_what_a_run_was_trained_on() -> None:
    references = References(trainings={}, students={}, versions={}, states={}, running={}, readers={}, unknown=(RUN,))
    stored = Stored([StoredObject(ROOT / "a", 1, modified=NOW - timedelta(days=1))])
    assert reasons_to_keep_dataset(DIGEST, stored, references, NOW) == [f"what these runs were trained on is not known: {RUN}"]
    assert reasons_to_keep_dataset(DIGEST, stored, references.without({RUN}), NOW) == []


def test_a_dataset_stays_while_a_pipeline_run_that_ingested_it_is_running() -> None:
    """Its training may wait for a GPU for hours, and stores nothing until it has one."""
    references = replace(NO_REFERENCES, readers={DIGEST: ["demo-1"]})
    stored = Stored([StoredObject(ROOT / "a", 1, modified=NOW - timedelta(days=1))])
    assert reasons_to_keep_dataset(DIGEST, stored, references, NOW) == ["MLflow says that demo-1 is running"]
    assert reasons_to_keep_dataset("e" * 64, stored, references, NOW) == []


def test_parts_of_a_run_are_those_objects_alone() -> None:
    run = run_of("checkpoints", "samples", "attempts")
    assert [item.uri.key.split("/")[2] for item in parts_of(run, ("samples", "averages")).objects] == ["samples"]
    assert len(parts_of(run, ()).objects) == 3
