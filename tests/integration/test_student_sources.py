"""Weights of a student of few steps are known as such from wherever they are read: a folder, the store, a run, or a registered version."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import pandas as pd
import pytest
import torch
from celebdit_testing.browser import browser_page, chromium_or_skip
from celebdit_testing.command import celebdit_here
from celebdit_testing.first_run import made_once
from celebdit_testing.recipes import tiny_student
from celebdit_testing.registered import registered, registry_context
from celebdit_testing.trained import commit_checkpoint
from mlflow.exceptions import MlflowException

from components.errors import BadInput, DataRefused
from components.manifests import CheckpointManifest
from components.registry.client import Registry
from components.runtime.context import StepContext
from components.serving.local_server import serve_locally
from components.serving.register_version import register_unevaluated
from components.storage import file_sha256
from components.stores.checkpoints import CheckpointStore
from components.system.work_folders import WorkFolder
from components.tracking.tags import TAG_RUN_KEY
from components.weights.find import find_weights
from components.weights.posthoc_ema import compute_posthoc_ema, to_unevaluated
from model.checkpoint import CheckpointState, publish, read
from model.checkpoint_manifest import MANIFEST_FILE
from pipeline.commands.guidance import GuidanceRequest
from pipeline.services import Endpoints, Services

NAME = "students"
STUDENT = tiny_student(steps=3)
SNAPSHOT_STEPS = (3, 6)


@dataclass(frozen=True)
class Weights:
    """A student and a plain network, and where copies of the student lie on this machine."""

    student: CheckpointManifest
    plain: CheckpointManifest
    average_uri: str
    copies: Path


@pytest.fixture
def context(endpoints: Endpoints, tmp_path: Path) -> StepContext:
    return registry_context(endpoints, tmp_path, run_id=NAME)


@pytest.fixture
def weights(endpoints: Endpoints, session_folder: Path) -> Weights:
    """A student with snapshots, an average and two versions: of its checkpoint and of the average."""
    folder = session_folder / NAME
    folder.mkdir(exist_ok=True)
    stored = made_once(folder / "stored.txt", lambda: _store(registry_context(endpoints, folder, run_id=NAME), folder))
    *manifests, average_uri = stored.splitlines()
    student, plain = map(CheckpointManifest.model_validate_json, manifests)
    return Weights(student, plain, average_uri, folder / "copies")


def _store(context: StepContext, folder: Path) -> str:
    student = commit_checkpoint(context, folder / "local", seed=0x57D, recipe=STUDENT)
    plain = commit_checkpoint(context, folder / "local", seed=0x57E)
    state = read(next((folder / "local" / student.run_key).glob("step-*")))
    snapshots = CheckpointStore(context.store, context.layout.run(student.run_key).snapshots)
    averages = {"ema-0.1": state.tensors["ema-0.1"]}
    for step in SNAPSHOT_STEPS:
        snapshots.upload(publish(CheckpointState(step, averages, state.facts), folder / "snapshots"), "attempt-1")
    run = context.tracking.pipeline_run().info
    context.tracking.set_tags(run.run_id, {TAG_RUN_KEY: student.run_key})
    assert registered(context, student, NAME, sampling=STUDENT.sampling) == "1"
    average = compute_posthoc_ema(student.run_key, 0.1, context)
    assert average.sampling is not None
    trained = context.tracking.step_run("train", run_key=student.run_key).info.run_id
    assert register_unevaluated(to_unevaluated(average, average.sampling, "CC0"), NAME, trained, context) == ("2", True)
    _copy(context, folder / "copies", {"checkpoint": student.uri, "average": context.layout.key_of(average.uri)})
    return "\n".join([student.model_dump_json(), plain.model_dump_json(), str(average.uri)])


def _copy(context: StepContext, folder: Path, keys: Mapping[str, str]) -> None:
    """Copy what is stored at `keys`, as `aws s3 cp --recursive` does: a step's folder with one of each attempt below it."""
    for name, key in keys.items():
        uri = context.layout.locate(key)
        for item in context.store.list(uri):
            path = folder / name / "step-000000007" / uri.name / item.uri.relative_to(uri)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(context.store.get_bytes(item.uri, max_bytes=2**30))


SOURCES: dict[str, Callable[[Weights, StepContext], str]] = {
    "run key": lambda weights, _: weights.student.run_key,
    "step of a run": lambda weights, _: f"{weights.student.run_key}@7",
    "snapshot of a run": lambda weights, _: f"{weights.student.run_key}@3",
    "pipeline run": lambda *_: NAME,
    "key in the store": lambda weights, _: weights.student.uri,
    "location in the store": lambda weights, context: str(context.layout.locate(weights.student.uri)),
    "average in the store": lambda weights, _: weights.average_uri,
    "folder of a step": lambda weights, _: str(weights.copies / "checkpoint" / "step-000000007"),
    "folder of an attempt": lambda weights, _: str(next((weights.copies / "checkpoint" / "step-000000007").iterdir())),
    "folder of an average": lambda weights, _: str(weights.copies / "average" / "step-000000007"),
    "version": lambda *_: f"models:/{NAME}/1",
    "alias of a version": lambda *_: f"models:/{NAME}@challenger",
    "version of an average": lambda *_: f"models:/{NAME}/2",
}


@pytest.mark.parametrize("kind", SOURCES)
def test_a_student_from_any_source_neither_guides_nor_is_guided(kind: str, weights: Weights, context: StepContext) -> None:
    source = SOURCES[kind](weights, context)
    student, plain = (find_weights(name, ema=None, context=context) for name in (source, weights.plain.run_key))
    assert student.sampling == STUDENT.sampling
    assert plain.sampling is None
    for guided, guide, role in ((student, weights.plain.run_key, "SOURCE"), (plain, source, "--guide")):
        request = GuidanceRequest(guide, ema=None, weight=1.5, interval=(0.0, 1.0))
        with pytest.raises(BadInput, match=rf"^{role} .* is a distilled student"):
            request.find(guided, context)


def test_a_folder_of_a_version_is_no_source(weights: Weights, context: StepContext) -> None:
    files = Registry(context.tracking, NAME).files_of("1", context.scratch(WorkFolder.MODELS))
    with pytest.raises(DataRefused, match="incomplete or corrupt"):
        find_weights(str(files.folder), ema=None, context=context)


@pytest.mark.parametrize("version", ["1", "2"])
def test_a_served_student_draws_in_its_own_steps_alone(version: str, weights: Weights) -> None:
    """The trial before registration, which draws in two steps from other versions, has passed with its three."""
    model, seeds = mlflow.pyfunc.load_model(f"models:/{NAME}/{version}"), pd.DataFrame({"seed": [3]})
    (image,) = model.predict(seeds)["image"]
    assert image == model.predict(seeds, params={"sampler": "ddpm", "num_steps": 3})["image"][0]
    for params in ({"num_steps": 2}, {"sampler": "euler"}, {"sampler": "euler", "num_steps": 20}):
        with pytest.raises(MlflowException, match="is not how this distilled student draws images: leave both out, or set 'ddpm' and 3"):
            model.predict(seeds, params=params)


def test_the_page_of_a_student_offers_no_other_steps_than_its_own(weights: Weights, context: StepContext, tmp_path: Path) -> None:
    files = Registry(context.tracking, NAME).files_of("1", context.scratch(WorkFolder.MODELS))
    page: Any
    with serve_locally(files) as (url, _), browser_page(chromium_or_skip(), width=640, height=760) as page:
        page.goto(url)
        page.wait_for_function("document.querySelector('img').complete && document.querySelector('img').naturalWidth > 0")
        assert page.locator("input").count() == 1, "the seed alone"
        assert "it draws an image in 3 steps" in page.locator("form").inner_text()
        page.screenshot(path=str(tmp_path / "student-page.png"))
        page.goto(f"{url}/?seed=1&num_steps=20")
        page.locator(".refused").wait_for()
        assert "is not how this distilled student draws images" in page.locator(".refused").inner_text()
        page.screenshot(path=str(tmp_path / "refused-page.png"))


def test_an_average_that_would_be_refused_is_not_computed(
    weights: Weights, context: StepContext, embedded: Services, capsys: pytest.CaptureFixture[str]
) -> None:
    key, averages = weights.student.run_key, context.layout.run(weights.student.run_key).averages
    before = context.store.list(averages)
    command = ("ema", key, "--sigma-rel", "0.07", "--steps", "8", "--register", NAME)
    refused = celebdit_here(*command, home=embedded.home, capture=capsys)
    assert refused.code == 2
    assert "--register: this student was trained for ddpm with 3 steps, ddpm with 8 steps gives worse images" in refused.err
    assert context.store.list(averages) == before


def test_samples_of_a_version_in_other_steps_give_a_warning(
    weights: Weights, embedded: Services, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def warnings(*options: str) -> int:
        arguments = (f"models:/{NAME}/1", "--count", "1", "--batch", "1", "--out", str(tmp_path / "one.png"))
        done = celebdit_here("sample", *arguments, *options, home=embedded.home, capture=capsys)
        assert done.code == 0, done.err
        return done.err.count("warning: this student was trained for ddpm with 3 steps, euler with 2 steps gives worse images")

    assert (warnings(), warnings("--sampler", "euler", "--steps", "2")) == (0, 1)


@pytest.mark.parametrize("command", ["ema", "sample", "sample of a folder"])
def test_a_snapshot_of_another_version_of_celebdit_is_bad_input(
    command: str, weights: Weights, context: StepContext, embedded: Services, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key, step = weights.plain.run_key, 9
    snapshots = CheckpointStore(context.store, context.layout.run(key).snapshots)
    checkpoint = publish(CheckpointState(step, {"ema-0.1": {"w": torch.ones(2)}}, {}), tmp_path)
    manifest = checkpoint.directory / MANIFEST_FILE
    manifest.write_bytes(manifest.read_bytes().replace(b'"format":1', b'"format":2'))
    snapshots.upload(replace(checkpoint, digest=file_sha256(manifest)), "attempt-1")
    out = ("--out", str(tmp_path / "faces.png"))
    arguments = {
        "ema": ("ema", key, "--sigma-rel", "0.07", "--steps", "8"),
        "sample": ("sample", f"{key}@{step}", *out),
        "sample of a folder": ("sample", str(checkpoint.directory), *out),
    }[command]
    refused = celebdit_here(*arguments, home=embedded.home, capture=capsys)
    assert refused.code == 2, refused.err
    assert "checkpoint format 2 is not 1, the format that this version reads" in refused.err
    assert "use the version of celebdit that wrote it" in refused.err
