"""The train step distils a teacher of the store: which teachers it takes, what the run is, and that kills and ranks do not change it."""

import hashlib
import signal
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from celebdit_testing.command import Finished, celebdit_here
from celebdit_testing.damage import damage, flip
from celebdit_testing.ranks import Training, ended, small_dataset
from celebdit_testing.recipes import tiny_recipe
from celebdit_testing.steps import notes, step_context
from celebdit_testing.trainings import run_train, small_faces

from components.errors import BadInput, DataRefused
from components.manifests import CheckpointManifest, DatasetManifest
from components.runtime.context import StepContext
from components.storage import StoreUri
from components.stores.checkpoint_names import COMMIT_FILE, step_of
from components.stores.checkpoints import CheckpointStore
from components.stores.layout import StoreLayout
from components.system.work_folders import WorkFolder
from components.train.spec import run_key
from components.train.teacher import with_teacher
from components.train.teacher_weights import fetch_teacher
from components.weights.find import find_weights
from components.weights.posthoc_ema import compute_posthoc_ema
from model.checkpoint_manifest import MANIFEST_FILE, STATE_FILE
from model.config import DistillConfig, Recipe, SamplingConfig
from model.denoiser import build_denoiser

TEACHER = tiny_recipe(ema_sigma_rel=(0.05, 0.1), ema_snapshot_every_steps=3)
KEPT = {"ema_snapshot_every_steps": 2}


def student_of(teacher: str, *, network: dict[str, Any] | None = None, teacher_ema: str | None = None, **training: Any) -> Recipe:
    changes = {
        "distill": DistillConfig(teacher=teacher, steps=2, teacher_ema=teacher_ema),
        "sampling": SamplingConfig(sampler="ddpm", num_steps=2, ema="0.1"),
    }
    return tiny_recipe(network=network, **{"total_steps": 4, **training}).model_copy(update=changes)


@pytest.fixture(scope="module")
def home(rclone_endpoint: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    folder = tmp_path_factory.mktemp("students")
    return folder, str(StoreUri("bucket", "tests") / folder.name), rclone_endpoint


@pytest.fixture
def context(home: tuple[Path, str, str], tmp_path: Path) -> StepContext:
    """A machine of its own for each test, on one store."""
    return step_context("train", tmp_path, home[1], endpoint=home[2])


@pytest.fixture(scope="module")
def dataset(home: tuple[Path, str, str]) -> DatasetManifest:
    return small_faces(step_context("ingest", home[0], home[1], endpoint=home[2]))


@pytest.fixture(scope="module")
def teacher(home: tuple[Path, str, str], dataset: DatasetManifest) -> CheckpointManifest:
    return run_train(TEACHER, dataset, step_context("train", home[0], home[1], endpoint=home[2]))


def test_a_student_is_a_run_of_its_own_that_names_its_teacher_and_draws_with_its_own_steps(
    context: StepContext, dataset: DatasetManifest, teacher: CheckpointManifest
) -> None:
    recipe, launches = student_of(teacher.run_key, **KEPT), list[int]()
    student = run_train(recipe, dataset, context, launches=launches)
    assert (student.step, student.run_key != teacher.run_key, len(launches)) == (4, True, 1)
    known = student.recipe.teacher
    assert known is not None
    weights = find_weights(teacher.run_key, ema="0.1", context=context)
    assert (known.run_key, known.step, known.ema) == (teacher.run_key, 6, TEACHER.sampling.ema)
    assert student.run_key == run_key(with_teacher(recipe, context.store, context.layout).identity(dataset.digest))
    assert any(f"the teacher is {teacher.run_key}@6, EMA 0.1" in note for note in notes(context))
    drawn = find_weights(student.run_key, ema=None, context=context).sampling
    assert drawn == SamplingConfig(sampler="ddpm", num_steps=2, ema="0.1")
    assert weights.sampling is None, "a teacher is drawn from as before"
    average = compute_posthoc_ema(student.run_key, 0.1, context)
    assert average.sampling is not None
    assert (average.sampling.sampler, average.sampling.num_steps) == ("ddpm", 2)
    again = run_train(recipe, dataset, context, launches=launches)
    assert (again.digest, len(launches)) == (student.digest, 1), "a finished student is not trained again"
    with pytest.raises(BadInput, match="is a student itself") as raised:
        with_teacher(student_of(student.run_key), context.store, context.layout)
    assert raised.value.hint == f"distil its own teacher, {teacher.run_key}"


def test_a_student_neither_guides_nor_is_guided_and_other_steps_give_a_warning(
    context: StepContext, dataset: DatasetManifest, teacher: CheckpointManifest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    student = run_train(student_of(teacher.run_key), dataset, context)
    folders = {}
    for name, checkpoint in (("student", student), ("teacher", teacher)):
        uri = context.layout.locate(checkpoint.uri)
        folders[name] = str(CheckpointStore(context.store, uri).fetch(uri, tmp_path / name).directory)

    def draw(source: str, *options: str) -> Finished:
        arguments = ("--count", "1", "--batch", "1", "--out", str(tmp_path / "one.png"), *options)
        return celebdit_here("sample", folders[source], *arguments, home=tmp_path, capture=capsys)

    for source, guide, role in (("student", "teacher", "SOURCE"), ("teacher", "student", "--guide")):
        refused = draw(source, "--guide", folders[guide])
        assert refused.code == 2
        assert f"{role} {folders['student']} is a distilled student" in refused.err
    own, other = draw("student"), draw("student", "--sampler", "euler", "--steps", "3")
    assert (own.code, other.code) == (0, 0)
    assert "warning" not in own.err
    assert "warning: this student was trained for ddpm with 2 steps, euler with 3 steps gives worse images" in other.err
    assert "warning" not in draw("teacher", "--sampler", "euler", "--steps", "3").err


def test_a_student_whose_teacher_was_deleted_says_that_it_must_be_kept(context: StepContext, dataset: DatasetManifest) -> None:
    of_its_own = run_train(tiny_recipe(seed=12, total_steps=1), dataset, context)
    student = run_train(student_of(of_its_own.run_key), dataset, context)
    for item in context.store.list(context.layout.run(of_its_own.run_key).prefix):
        context.store.delete(item.uri)
    with pytest.raises(BadInput, match="there is no such training") as raised:
        run_train(student_of(of_its_own.run_key), dataset, context)
    assert "put it back: also a finished student needs it to run" in str(raised.value.hint)
    assert find_weights(student.run_key, ema=None, context=context).sampling is not None, "images are drawn without the teacher"


def test_a_finished_student_needs_the_small_files_of_its_teacher_and_not_its_weights(
    context: StepContext, dataset: DatasetManifest
) -> None:
    of_its_own, launches = run_train(tiny_recipe(seed=13, total_steps=1), dataset, context), list[int]()
    student = run_train(student_of(of_its_own.run_key), dataset, context)
    weights = [item.uri for item in context.store.list(context.layout.run(of_its_own.run_key).prefix) if ".safetensors" in item.uri.name]
    for uri in weights:
        context.store.delete(uri)
    again = run_train(student_of(of_its_own.run_key), dataset, context, launches=launches)
    assert (len(weights) > 1, again.digest, launches) == (True, student.digest, [])


def test_other_weights_of_the_teacher_are_another_run(context: StepContext, dataset: DatasetManifest, teacher: CheckpointManifest) -> None:
    key = teacher.run_key
    recipes = [student_of(key), student_of(f"{key}@6"), student_of(key, teacher_ema="0.05"), student_of(f"{key}@3")]
    keys = [run_key(with_teacher(recipe, context.store, context.layout).identity(dataset.digest)) for recipe in recipes]
    assert keys[0] == keys[1], "the last step by its number"
    assert len({*keys}) == 3
    with pytest.raises(ValueError, match="was not looked up"):
        recipes[0].identity(dataset.digest)


@pytest.mark.parametrize(
    ("name", "changes", "problem", "hint"),
    [
        ("0" * 16, {}, "there is no such training", "name a run key"),
        ("{key}@5", {}, "has no checkpoint or snapshot of that step", "it has steps 3, 6"),
        ("{key}", {"teacher_ema": "0.2"}, "has no average '0.2'", "one of 0.05, 0.1, none"),
        (
            "{key}",
            {"network": {"width": 64}},
            r"network\.width is 64, the teacher has 32: set network\.width=32$",
            "a student has the network",
        ),
        (
            "{key}",
            {"network": {"augmentation": 0.5}},
            r"^network\.augmentation is 0\.5, the teacher has 0\.0: set network\.a.*=0\.0$",
            "",
        ),
    ],
    ids=["missing", "step", "average", "network", "left out"],
)
def test_a_teacher_that_does_not_fit_is_refused_before_any_step(
    name: str,
    changes: dict[str, Any],
    problem: str,
    hint: str,
    context: StepContext,
    dataset: DatasetManifest,
    teacher: CheckpointManifest,
) -> None:
    recipe, launches = student_of(name.format(key=teacher.run_key), **changes), list[int]()
    with pytest.raises(BadInput, match=problem) as raised:
        run_train(recipe, dataset, context, launches=launches)
    assert hint in str(raised.value.hint)
    assert not launches


def test_a_teacher_that_is_not_finished_is_refused_and_one_of_its_steps_is_not(context: StepContext, dataset: DatasetManifest) -> None:
    stopped = run_train(tiny_recipe(seed=7), dataset, context)
    longer = tiny_recipe(seed=7, total_steps=9)
    with pytest.raises(RuntimeError, match="killed"), pytest.MonkeyPatch.context() as patch:
        patch.setattr("model.trainer.Trainer.run", killed)
        run_train(longer, dataset, context)
    with pytest.raises(BadInput, match=r"is not finished: it has step 6 of 9") as raised:
        with_teacher(student_of(stopped.run_key), context.store, context.layout)
    assert f"distill.teacher={stopped.run_key}@6" in str(raised.value.hint)
    teacher = with_teacher(student_of(f"{stopped.run_key}@6"), context.store, context.layout).teacher
    assert teacher is not None
    assert teacher.step == 6


def killed(*_: Any, **__: Any) -> bool:
    raise RuntimeError("killed")


@pytest.mark.parametrize(
    ("file", "kind", "num_launches"),
    [("ema-0.1.safetensors", "one bit", 1), ("ema-0.1.safetensors", "deleted", 1), (MANIFEST_FILE, "other", 0), (STATE_FILE, "other", 0)],
)
def test_a_damaged_teacher_is_refused(file: str, kind: str, num_launches: int, context: StepContext, dataset: DatasetManifest) -> None:
    """Manifest and state are read when the teacher is looked up, its weights in a rank; "other" is valid but not what was stored."""
    of_its_own = run_train(tiny_recipe(seed=len(file + kind), total_steps=1), dataset, context)
    uri, launches = context.layout.locate(of_its_own.uri) / file, list[int]()
    other = context.store.get_bytes(uri, max_bytes=2**30).replace(b"{", b"{ ", 1)
    damage(context.store, uri, kind, other=other)
    with pytest.raises(DataRefused, match=r"damaged: .*ema-0\.1|damaged: .*has not the sha256") as raised:
        run_train(student_of(of_its_own.run_key), dataset, context, launches=launches)
    assert "run the teacher's training again" in str(raised.value.hint)
    assert len(launches) == num_launches


@pytest.mark.parametrize("file", [MANIFEST_FILE, "ema-0.1.safetensors"])
@pytest.mark.parametrize(
    ("total_steps", "hint"), [(4, "distil another step of it: 4"), (1, "it has no other step: distil another training")]
)
def test_a_damaged_step_of_a_teacher_is_not_said_to_be_made_again(
    total_steps: int, hint: str, file: str, context: StepContext, dataset: DatasetManifest
) -> None:
    """Its training makes the last checkpoint again alone; what is left is another step."""
    step = min(total_steps, 3)
    kept: dict[str, Any] = {"ema_snapshot_every_steps": 3} if step < total_steps else {}
    of_its_own = run_train(tiny_recipe(seed=len(file) + 20 * total_steps, total_steps=total_steps, **kept), dataset, context)
    run = context.layout.run(of_its_own.run_key)
    (uri,) = (
        item.uri
        for home in (run.checkpoints, run.snapshots)
        for item in context.store.list(home)
        if item.uri.name == file and step_of(item.uri) == step
    )
    damage(context.store, uri, "one bit")
    with pytest.raises(DataRefused, match="damaged") as raised:
        run_train(student_of(f"{of_its_own.run_key}@{step}"), dataset, context)
    assert raised.value.hint == hint


def test_a_rank_takes_no_other_weights_than_those_that_were_looked_up(context: StepContext, teacher: CheckpointManifest) -> None:
    recipe = with_teacher(student_of(teacher.run_key), context.store, context.layout)
    known, distill = recipe.teacher, recipe.distill
    assert known is not None
    assert distill is not None
    fetched = {name: tensor.clone() for name, tensor in fetch_teacher(known, distill, context).items()}  # of a file that is changed below
    assert set(fetched) == {name for name, _ in build_denoiser(TEACHER.network).named_parameters()}
    (local,) = context.scratch(WorkFolder.TEACHERS).rglob("ema-0.1.safetensors")
    before = local.stat().st_mtime_ns
    fetch_teacher(known, distill, context)
    assert local.stat().st_mtime_ns == before, "the next rank of the machine downloads nothing"
    local.write_bytes(flip(local.read_bytes()))
    assert all(torch.equal(tensor, fetched[name]) for name, tensor in fetch_teacher(known, distill, context).items())
    with pytest.raises(DataRefused, match="holds other weights"):
        fetch_teacher(known.model_copy(update={"weights_sha256": "0" * 64}), distill, context)


def test_each_rank_refuses_weights_that_are_not_finite_also_those_that_another_one_has_fetched(
    context: StepContext, dataset: DatasetManifest
) -> None:
    of_its_own, file = run_train(tiny_recipe(seed=11, total_steps=1), dataset, context), "ema-0.1.safetensors"
    store_non_finite(context, context.layout.locate(of_its_own.uri), file)
    recipe = with_teacher(student_of(of_its_own.run_key), context.store, context.layout)
    assert recipe.teacher is not None
    assert recipe.distill is not None
    for _ in range(2):
        with pytest.raises(DataRefused, match=r"damaged: ema-0\.1\.safetensors is not finite in [^;]*$"):
            fetch_teacher(recipe.teacher, recipe.distill, context)


def store_non_finite(context: StepContext, uri: StoreUri, file: str) -> None:
    """Replace the weights of a stored checkpoint by others that its manifest and its commit agree with."""
    raw = context.store.get_bytes(uri / file, max_bytes=2**30)
    tensors = safetensors.torch.load(raw)
    next(iter(tensors.values())).fill_(float("nan"))
    replaced = safetensors.torch.save(tensors)
    context.store.put_bytes(uri / file, replaced)
    for name in (MANIFEST_FILE, COMMIT_FILE):
        before = context.store.get_bytes(uri / name)
        after = before.replace(hashlib.sha256(raw).hexdigest().encode(), hashlib.sha256(replaced).hexdigest().encode())
        assert (len(after), after != before) == (len(before), True)
        context.store.put_bytes(uri / name, after)
        raw, replaced = before, after


@pytest.fixture(scope="module")
def shared(rclone_endpoint: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DatasetManifest, StepContext, CheckpointManifest]:
    """A folder, a dataset and a teacher in the store around those of the trainings below."""
    folder = tmp_path_factory.mktemp("students-of-ranks")
    root = StoreUri("bucket", folder.name)
    dataset = small_dataset(folder / "data", rclone_endpoint, root)
    context = step_context("train", folder / "teacher", str(root), endpoint=rclone_endpoint)
    return folder, dataset, context, run_train(TEACHER, dataset, context)


def training_of(shared: tuple[Path, DatasetManifest, StepContext, CheckpointManifest], endpoint: str, name: str) -> Training:
    """A distillation in a store of its own, which has the teacher too."""
    folder, dataset, context, teacher = shared
    root = context.root / name
    for item in context.store.list(context.layout.run(teacher.run_key).prefix):
        context.store.copy(item.uri, root.join(item.uri.relative_to(context.root)))
    recipe = student_of(teacher.run_key, total_steps=40, batch_images=12, log_every_steps=1, checkpoint_keep_every_steps=4)
    return Training(folder / name, endpoint, root, with_teacher(recipe, context.store, StoreLayout(root)), dataset)


def test_kills_and_the_number_of_ranks_do_not_change_a_student(
    shared: tuple[Path, DatasetManifest, StepContext, CheckpointManifest], rclone_endpoint: str
) -> None:
    alone, killed_twice, one = (training_of(shared, rclone_endpoint, name) for name in ("alone", "killed", "one"))
    for _ in range(2):
        with ended(killed_twice.start(2)) as ranks:
            killed_twice.advance(7, ranks)
            ranks.signal(signal.SIGKILL)
            ranks.wait()
    for training, size in ((alone, 2), (killed_twice, 2), (one, 1)):
        with ended(training.start(size)) as ranks:
            assert ranks.wait(120) == [0] * size, ranks.reason()
    assert killed_twice.recorded_values() == alone.recorded_values()
    assert killed_twice.final_digest() == alone.final_digest()
    (values, of_one) = (
        {step: float.fromhex(next(iter(entries))) for step, entries in training.recorded_values().items()} for training in (alone, one)
    )
    assert values.keys() == of_one.keys() == set(range(1, 41))
    torch.testing.assert_close(torch.tensor(list(of_one.values())), torch.tensor(list(values.values())), rtol=1e-3, atol=0)
