"""Finished trainings whose checkpoints or snapshots were damaged or lost: the step makes them again, bit for bit."""

import hashlib
import json
from pathlib import Path

import pytest
from celebdit_testing.damage import contents, damage
from celebdit_testing.recipes import tiny_recipe
from celebdit_testing.steps import notes, step_context
from celebdit_testing.trainings import run_train, small_faces

from components.errors import DataRefused
from components.manifests import CheckpointManifest, DatasetManifest
from components.runtime.context import StepContext
from components.storage import StoreUri
from components.storage.unfinished_uploads import begin_upload, unfinished_uploads
from components.stores.checkpoint_names import COMMIT_FILE, QUARANTINE_FILE
from components.stores.checkpoints import CheckpointStore
from components.system.work_folders import WorkFolder
from components.train.spec import run_key
from components.weights.posthoc_ema import compute_posthoc_ema
from model.canonical import canonical_json
from model.checkpoint_manifest import MANIFEST_FILE, STATE_FILE

RECIPE = tiny_recipe(ema_snapshot_every_steps=3, checkpoint_keep_every_steps=3)
AVERAGE = "ema-0.1.safetensors"


@pytest.fixture(scope="module")
def home(rclone_endpoint: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    folder = tmp_path_factory.mktemp("trainings")
    return folder, str(StoreUri("bucket", "tests") / folder.name), rclone_endpoint


@pytest.fixture
def context(home: tuple[Path, str, str], tmp_path: Path) -> StepContext:
    """A machine of its own for each test, on one store."""
    return step_context("train", tmp_path, home[1], endpoint=home[2])


@pytest.fixture(scope="module")
def dataset(home: tuple[Path, str, str]) -> DatasetManifest:
    return small_faces(step_context("ingest", home[0], home[1], endpoint=home[2]))


@pytest.fixture(scope="module")
def trained(home: tuple[Path, str, str], dataset: DatasetManifest) -> CheckpointManifest:
    return run_train(RECIPE, dataset, step_context("train", home[0], home[1], endpoint=home[2]))


def current(context: StepContext, manifest: CheckpointManifest, step: int = 6) -> StoreUri:
    committed = CheckpointStore(context.store, context.layout.run(manifest.run_key).checkpoints).list_committed()
    return next(entry.uri for entry in committed if entry.step == step)


DAMAGE = [
    *((AVERAGE, kind) for kind in ("one bit", "cut off", "empty", "deleted", "other")),
    ("weights.safetensors", "one bit"),
    ("optimizer.safetensors", "cut off"),
    (STATE_FILE, "other"),
    (MANIFEST_FILE, "deleted"),
    (MANIFEST_FILE, "other"),
    (COMMIT_FILE, "one bit"),
    (COMMIT_FILE, "empty"),
    (COMMIT_FILE, "other"),
    (COMMIT_FILE, "deleted"),
]


@pytest.mark.parametrize(("name", "kind"), DAMAGE)
def test_a_damaged_last_checkpoint_is_trained_again_from_the_one_before(
    context: StepContext, dataset: DatasetManifest, trained: CheckpointManifest, name: str, kind: str
) -> None:
    store, uri = context.store, current(context, trained)
    whole = contents(store, uri)
    damage(store, uri / name, kind, other=store.get_bytes(current(context, trained, step=3) / name))
    launches: list[int] = []
    again = run_train(RECIPE, dataset, context, launches=launches)
    assert launches == [1]
    assert (again.digest, again.step) == (trained.digest, 6)
    assert any("continuing from step 3 of 6" in note for note in notes(context))
    healed = contents(store, context.layout.locate(again.uri))
    assert healed.keys() == whole.keys()
    assert {key: data for key, data in healed.items() if key != COMMIT_FILE} == {k: d for k, d in whole.items() if k != COMMIT_FILE}
    if (name, kind) != (COMMIT_FILE, "deleted"):  # without a commit it never was a checkpoint
        assert store.exists(uri / QUARANTINE_FILE)
        assert kind == "deleted" or store.exists(uri / name), "the damaged file is kept"
    assert run_train(RECIPE, dataset, context, launches=launches) == again
    assert launches == [1], "it is finished, and nothing is trained"


def test_a_last_checkpoint_that_consistently_lacks_an_average_is_not_finished(
    context: StepContext, dataset: DatasetManifest, trained: CheckpointManifest
) -> None:
    uri = current(context, trained)
    manifest = json.loads(context.store.get_bytes(uri / MANIFEST_FILE))
    del manifest["files"][AVERAGE]
    context.store.delete(uri / AVERAGE)
    context.store.put_bytes(uri / MANIFEST_FILE, canonical_json(manifest))
    digest = hashlib.sha256(canonical_json(manifest)).hexdigest()
    context.store.put_bytes(uri / COMMIT_FILE, canonical_json({"digest": digest, "step": 6, "notes": {}}))
    again = run_train(RECIPE, dataset, context)
    assert again.digest == trained.digest
    assert any(f"does not hold {AVERAGE}" in note for note in notes(context))


def test_the_next_attempt_aborts_the_uploads_that_killed_ones_left(context: StepContext, dataset: DatasetManifest) -> None:
    recipe = tiny_recipe(total_steps=2, seed=77, ema_snapshot_every_steps=1)
    run = context.layout.run(run_key(recipe.identity(dataset.digest)))
    left = [
        begin_upload(context.store, home / "step-000000001" / attempt / "weights.safetensors")
        for home in (run.checkpoints, run.snapshots)
        for attempt in ("20260101T000000-aaaaaa", "20260101T000001-bbbbbb", "29990101T000000-cccccc")
    ]
    later = {upload.id for upload in left if "/2999" in upload.uri.key}
    run_train(recipe, dataset, context)
    assert {upload.id for upload in unfinished_uploads(context.store, run.prefix) or []} == later
    assert any("4 incomplete uploads of ended attempts were removed" in note for note in notes(context))


@pytest.mark.parametrize("kind", ["one bit", "deleted"])
@pytest.mark.parametrize("machine", ["the same", "another"])
def test_a_run_with_one_checkpoint_alone_begins_again(
    context: StepContext, home: tuple[Path, str, str], dataset: DatasetManifest, tmp_path: Path, kind: str, machine: str
) -> None:
    recipe = tiny_recipe(total_steps=2, seed=["one bit", "deleted"].index(kind) + 10 * ["the same", "another"].index(machine) + 100)
    first = run_train(recipe, dataset, context)
    damage(context.store, context.layout.locate(first.uri) / AVERAGE, kind)
    machine_context = context if machine == "the same" else step_context("train", tmp_path / "elsewhere", home[1], endpoint=home[2])
    again = run_train(recipe, dataset, machine_context)
    assert (again.digest, again.uri != first.uri) == (first.digest, True)
    expected_note = "was only on local disk and is now uploaded" if machine == "the same" else "training begins again at step 0"
    assert any(expected_note in note for note in notes(machine_context))


def test_if_checkpoints_of_several_steps_are_all_damaged_nothing_begins_again(
    context: StepContext, home: tuple[Path, str, str], dataset: DatasetManifest, tmp_path: Path
) -> None:
    recipe = tiny_recipe(total_steps=4, seed=77, checkpoint_keep_every_steps=2)
    first = run_train(recipe, dataset, context)
    for step in (2, 4):
        damage(context.store, current(context, first, step=step) / AVERAGE, "one bit")
    elsewhere = step_context("train", tmp_path / "elsewhere", home[1], endpoint=home[2])  # without the copy on local disk
    for _ in range(2):
        with pytest.raises(DataRefused, match="all of them are corrupt or incomplete"):
            run_train(recipe, dataset, elsewhere)


@pytest.mark.parametrize("is_finished", [True, False])
def test_what_killed_attempts_left_incomplete_is_removed_by_the_next_run(
    context: StepContext, dataset: DatasetManifest, is_finished: bool
) -> None:
    """In object storage and on local disk, of checkpoints and of snapshots, also if nothing is left to train."""
    recipe = tiny_recipe(total_steps=4, seed=78 + is_finished, ema_snapshot_every_steps=2)
    first = run_train(recipe, dataset, context)
    run, folder = context.layout.run(first.run_key), context.scratch(WorkFolder.RUNS, first.run_key)
    left = [home / "step-000000002" / "20260101T000000.000000-aaaaaa" / "weights.safetensors" for home in (run.checkpoints, run.snapshots)]
    staging = [folder / name / ".staging-step-000000002-7" for name in ("checkpoints", "snapshots")]
    for uri in left:
        context.store.put_bytes(uri, b"half")
    for path in staging:
        (path / "weights").mkdir(parents=True)
    again = run_train(recipe if is_finished else tiny_recipe(total_steps=5, seed=78, ema_snapshot_every_steps=2), dataset, context)
    assert again.run_key == first.run_key
    assert not [uri for uri in left if context.store.exists(uri)]
    assert not [path for path in staging if path.exists()]
    assert any("2 incomplete uploads of ended attempts were removed" in note for note in notes(context))


@pytest.mark.parametrize("step", [3, 6])
@pytest.mark.parametrize("kind", ["cut off", "empty", "deleted", "all gone", "no manifest", "one bit"])
def test_a_damaged_snapshot_is_copied_from_the_checkpoint_of_its_step(
    context: StepContext, dataset: DatasetManifest, trained: CheckpointManifest, step: int, kind: str
) -> None:
    store = context.store
    snapshots = CheckpointStore(store, context.layout.run(trained.run_key).snapshots)
    uri = next(entry.uri for entry in snapshots.list_committed() if entry.step == step)
    whole = contents(store, uri)
    average = compute_posthoc_ema(trained.run_key, 0.07, context)
    if kind == "all gone":
        for item in store.list(uri):
            store.delete(item.uri)
    elif kind == "no manifest":
        damage(store, uri / MANIFEST_FILE, "deleted")
    else:
        damage(store, uri / AVERAGE, kind)
    if kind == "one bit":  # only who reads it sees that
        assert compute_posthoc_ema(trained.run_key, 0.07, context).num_snapshots == average.num_snapshots - 1
    launches: list[int] = []
    run_train(RECIPE, dataset, context, launches=launches)
    assert not launches
    restored = next(entry.uri for entry in snapshots.list_committed() if entry.step == step)
    assert restored != uri
    assert {k: d for k, d in contents(store, restored).items() if k != COMMIT_FILE} == {k: d for k, d in whole.items() if k != COMMIT_FILE}
    assert compute_posthoc_ema(trained.run_key, 0.07, context).checkpoint.digest == average.checkpoint.digest


@pytest.mark.parametrize("cost", ["little", "much"])
def test_a_snapshot_that_no_checkpoint_holds_is_trained_again_if_that_costs_no_more_than_a_kill(
    context: StepContext, dataset: DatasetManifest, cost: str
) -> None:
    recipe = tiny_recipe(total_steps=6, seed=len(cost), ema_snapshot_every_steps=2)
    first = run_train(recipe, dataset, context)
    snapshots = CheckpointStore(context.store, context.layout.run(first.run_key).snapshots)
    digests = {entry.step: snapshots.digest(entry.uri) for entry in snapshots.list_committed()}
    for entry in snapshots.list_committed():
        damage(context.store, entry.uri / AVERAGE, "deleted")
    if cost == "much":
        commit = json.loads(context.store.get_bytes(context.layout.locate(first.uri) / COMMIT_FILE))
        commit["notes"]["device_hours"] = 1000.0
        context.store.put_bytes(context.layout.locate(first.uri) / COMMIT_FILE, canonical_json(commit))
    launches: list[int] = []
    assert run_train(recipe, dataset, context, launches=launches) == first
    restored = {entry.step: snapshots.digest(entry.uri) for entry in snapshots.list_committed()}
    if cost == "little":
        assert (restored, launches) == (digests, [1, 1])
        assert run_train(recipe, dataset, context, launches=launches) == first
        assert launches == [1, 1]
    else:
        assert (restored, launches) == ({6: digests[6]}, [])
        assert any("lacks the EMA snapshots of steps 2, 4" in note for note in notes(context))


@pytest.mark.parametrize("kind", ["one bit", "deleted", "other"])
def test_a_damaged_post_hoc_average_is_made_again(
    context: StepContext, dataset: DatasetManifest, trained: CheckpointManifest, kind: str
) -> None:
    average = compute_posthoc_ema(trained.run_key, 0.09, context)
    whole = contents(context.store, average.uri)
    before = contents(context.store, context.layout.quarantine)
    damage(context.store, average.uri / "ema-0.09.safetensors", kind)
    damaged = contents(context.store, average.uri)
    assert compute_posthoc_ema(trained.run_key, 0.09, context).checkpoint.digest == average.checkpoint.digest
    assert contents(context.store, average.uri) == whole
    moved = {key: data for key, data in contents(context.store, context.layout.quarantine).items() if key not in before}
    assert set(damaged.values()) <= set(moved.values())


def test_another_attempt_with_the_same_bytes_serves_for_a_damaged_checkpoint(
    context: StepContext, trained: CheckpointManifest, dataset: DatasetManifest
) -> None:
    uri = current(context, trained)
    checkpoints = CheckpointStore(context.store, context.layout.run(trained.run_key).checkpoints)
    twin = checkpoints.upload(checkpoints.fetch(uri, context.scratch(WorkFolder.MODELS, "twin")), "99999999T000000-twin")
    damage(context.store, uri / AVERAGE, "one bit")
    fetched = checkpoints.fetch_copy(trained.digest, context.scratch(WorkFolder.MODELS, "copy"), files=[AVERAGE], near=uri)
    assert fetched.digest == trained.digest
    assert context.store.exists(uri / QUARANTINE_FILE)
    damage(context.store, twin / AVERAGE, "deleted")
    with pytest.raises(DataRefused, match="is corrupt or incomplete") as refused:
        checkpoints.fetch_copy(trained.digest, context.scratch(WorkFolder.MODELS, "copy"), files=[AVERAGE], near=uri)
    assert refused.value.hint is not None
    assert "run the train step again" in refused.value.hint
    assert run_train(RECIPE, dataset, context).digest == trained.digest
