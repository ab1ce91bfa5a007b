"""The evaluate step on real S3 and a real MLflow server: any number of ranks, kills, what is kept, and the champion beside it."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from celebdit_testing.inception import write_inception
from celebdit_testing.steps import notes, step_context
from celebdit_testing.trained import commit_checkpoint
from PIL import Image

from components.context import StepContext
from components.errors import BadInput, DataRefused, TemporaryFailure
from components.evaluate.config import EvaluationConfig
from components.evaluate.evaluate import run as evaluate
from components.evaluate.measure import REPORT_FILE
from components.evaluate.page import samples_page
from components.evaluate.reference import find_reference, reference_uri
from components.evaluate.samples import SampleStore, shards_of
from components.evaluate.spec import EvaluateSpec
from components.evaluate.worker import body
from components.gate.config import GateConfig
from components.gate.gate import run as gate
from components.ingest.config import DataConfig
from components.ingest.ingest import run as ingest
from components.manifests import CheckpointManifest, DatasetManifest, EvaluationReport, GateDecision
from components.register.register import run as register
from components.registry import Registry
from components.registry_config import RegistryConfig
from components.resources import ResourcesConfig
from components.storage import StoreUri, file_sha256
from components.worker import Rank
from model.config import SamplingConfig
from model.distributed import World
from pipeline.services import Endpoints, Services

SAMPLING = SamplingConfig(sampler="euler", num_steps=2, ema="0.1")
NUM_IMAGES = 24
HEADLINE = "eval/fd_randconv_24"


def config(**changes: Any) -> EvaluationConfig:
    values = {"num_images": NUM_IMAGES, "extractor": "random-conv", "shard_images": 4, "batch_images": 4, "bootstrap_replicates": 3}
    return EvaluationConfig(**{**values, **changes})


def resources(processes: int = 1) -> ResourcesConfig:
    return ResourcesConfig(device="cpu", processes=processes)


@pytest.fixture(scope="module")
def environment(embedded: Services) -> Iterator[Endpoints]:
    found = embedded.wait()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in found.environment.items():
            patch.setenv(name, value)
        for name in ("CELEBDIT_RUN_ID", "CELEBDIT_WORK_DIR"):
            patch.setenv(name, "changed by run_in_processes()")  # so that it is undone afterwards
        yield found


def place(environment: Endpoints, folder: Path, *, part: str = "evaluations", run_id: str = "evaluation-1") -> StepContext:
    """A step's context; another folder is another machine, another part another store."""
    store = f"{environment.environment['CELEBDIT_STORE']}/{part}"
    return step_context("evaluate", folder, store, endpoint=environment.s3_url, mlflow_uri=environment.mlflow_url, run_id=run_id)


def run(
    checkpoint: CheckpointManifest,
    dataset: DatasetManifest,
    evaluation: EvaluationConfig,
    sampling: SamplingConfig,
    resources: ResourcesConfig,
    model: str,
    context: StepContext,
) -> EvaluationReport:
    """The step as its component calls it, its one worker in this process: starting torch anew each time would cost minutes.

    The tests of several processes and of kills, and the pipeline's own tests, start real ones.
    """

    def here(module: str, spec_path: Path, **_: object) -> None:
        assert module == "components.evaluate.worker"
        body(spec_path, Rank(context=context, world=World(), stop_asked=threading.Event()))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("components.evaluate.measure.launch", here)
        return evaluate(checkpoint, dataset, evaluation, sampling, resources, model, context)


def run_in_processes(processes: int, checkpoint: CheckpointManifest, dataset: DatasetManifest, context: StepContext) -> EvaluationReport:
    """The step with workers of its own, which find their place in the environment."""
    settings = context.settings
    os.environ.update(CELEBDIT_STORE=settings.store_uri, CELEBDIT_RUN_ID=settings.run_id, CELEBDIT_WORK_DIR=str(settings.work_dir))
    return evaluate(checkpoint, dataset, config(batch_images=None), SAMPLING, resources(processes), "nobody", context)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("evaluate")


@pytest.fixture(scope="module")
def dataset(environment: Endpoints, folder: Path) -> DatasetManifest:
    context = place(environment, folder)
    return ingest(DataConfig(name="eval-faces", source="synthetic://?count=40&seed=0&size=16", image_px=16, held_out=0.2), context)


@pytest.fixture(scope="module")
def checkpoint(environment: Endpoints, folder: Path, dataset: DatasetManifest) -> CheckpointManifest:
    return commit_checkpoint(place(environment, folder), folder, seed=101, dataset_digest=dataset.digest)


@pytest.fixture(scope="module")
def whole(environment: Endpoints, folder: Path, dataset: DatasetManifest, checkpoint: CheckpointManifest) -> EvaluationReport:
    """An evaluation by one process that nothing disturbed."""
    return run(checkpoint, dataset, config(), SAMPLING, resources(), "nobody", place(environment, folder / "first"))


def moved(checkpoint: CheckpointManifest, source: StepContext, target: StepContext) -> CheckpointManifest:
    """The same checkpoint in another store."""
    uri = StoreUri.parse(checkpoint.uri)
    for item in source.store.list(uri):
        key = item.uri.relative_to(source.root)
        target.store.put_bytes(target.root.join(key), source.store.get_bytes(item.uri))
    return checkpoint.model_copy(update={"uri": str(target.root.join(uri.relative_to(source.root)))})


def test_every_number_comes_with_its_whole_protocol(
    whole: EvaluationReport, checkpoint: CheckpointManifest, dataset: DatasetManifest
) -> None:
    assert whole.headline == HEADLINE
    assert whole.protocol["name"] == "custom"
    assert whole.protocol["digest"] == whole.protocol_digest
    expected = {"num_images": 24, "num_reference": 40, "reference_split": "all", "codec": "png", "resize": "none", "ema": "0.1"}
    assert expected.items() <= whole.protocol.items()
    assert whole.protocol["dataset_digest"] == dataset.digest
    assert whole.protocol["checkpoint_digest"] == checkpoint.digest
    assert whole.protocol["sampling"]["sampler"] == "euler"
    assert whole.metrics[f"{HEADLINE}_std"] == pytest.approx(whole.intervals[HEADLINE].std, rel=1e-4)
    assert whole.intervals[HEADLINE].low < whole.metrics[HEADLINE] < whole.intervals[HEADLINE].high


def test_two_processes_draw_the_same_images_and_find_the_same_numbers(
    environment: Endpoints, tmp_path: Path, dataset: DatasetManifest, checkpoint: CheckpointManifest, whole: EvaluationReport, folder: Path
) -> None:
    here = place(environment, tmp_path, part="two-processes")
    there = moved(checkpoint, place(environment, folder), here)
    again = run_in_processes(2, there, dataset, here)
    assert again.protocol_digest == whole.protocol_digest
    for key, value in whole.metrics.items():
        assert again.metrics[key] == pytest.approx(value, rel=1e-5, abs=1e-5), key
    first = place(environment, folder)
    for shard in shards_of(NUM_IMAGES, 4):
        mine, theirs = (samples_of(context, spec_of(cp, dataset)).read(shard) for context, cp in ((first, checkpoint), (here, there)))
        assert mine is not None
        assert theirs is not None
        assert torch.equal(mine, theirs)


def spec_of(checkpoint: CheckpointManifest, dataset: DatasetManifest, **changes: Any) -> EvaluateSpec:
    return EvaluateSpec(checkpoint=checkpoint, dataset=dataset, evaluation=config(**changes), sampling=SAMPLING, resources=resources())


def samples_of(context: StepContext, spec: EvaluateSpec) -> SampleStore:
    return SampleStore(context.store, spec.samples_uri(context.root), image_px=16)


def test_a_killed_evaluation_continues_on_another_machine(
    embedded: Services,
    environment: Endpoints,
    tmp_path: Path,
    dataset: DatasetManifest,
    checkpoint: CheckpointManifest,
    whole: EvaluationReport,
    folder: Path,
) -> None:
    here = place(environment, tmp_path / "a", part="killed")
    there = moved(checkpoint, place(environment, folder), here)
    spec = spec_of(there, dataset)
    work = tmp_path / "a" / "direct"
    work.mkdir(parents=True)
    spec.dump(work / "spec.json")
    ema = next(item.uri for item in here.store.list(StoreUri.parse(there.uri)) if item.uri.name == "ema-0.1.safetensors")
    here.store.get_file(ema, work / "weights.safetensors")
    worker = subprocess.Popen(
        [sys.executable, "-m", "components.evaluate.worker", str(work / "spec.json")],
        env={
            **os.environ,
            "RANK": "0",
            "LOCAL_RANK": "0",
            "WORLD_SIZE": "1",
            "LOCAL_WORLD_SIZE": "1",
            "OMP_NUM_THREADS": "1",
            "CELEBDIT_RUN_ID": "killed",
            "CELEBDIT_STORE": str(here.root),
            "CELEBDIT_WORK_DIR": str(tmp_path / "a" / "work"),
            "MLFLOW_TRACKING_URI": "http://127.0.0.1:9",
        },
    )
    store = samples_of(here, spec)
    end = time.monotonic() + 120
    while len(store.present()) < 2:
        assert worker.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < end
        time.sleep(0.005)
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    kept = store.present()
    assert 2 <= len(kept) < 6
    written = {name: written_ns(embedded, spec.samples_uri(here.root) / f"{name}.npy") for name in kept}
    finished = run(there, dataset, config(), SAMPLING, resources(), "nobody", place(environment, tmp_path / "b", part="killed"))
    assert {name: written_ns(embedded, spec.samples_uri(here.root) / f"{name}.npy") for name in kept} == written, "not drawn again"
    assert {key: round(value, 4) for key, value in finished.metrics.items()} == {key: round(v, 4) for key, v in whole.metrics.items()}


def written_ns(embedded: Services, uri: StoreUri) -> int:
    """When the embedded server wrote an object."""
    return (embedded.home / "s3" / uri.bucket / uri.key).stat().st_mtime_ns


def test_an_evaluation_that_is_finished_is_not_done_again(
    environment: Endpoints, tmp_path: Path, dataset: DatasetManifest, checkpoint: CheckpointManifest, whole: EvaluationReport
) -> None:
    here = place(environment, tmp_path)
    assert run(checkpoint, dataset, config(), SAMPLING, resources(), "nobody", here) == whole
    assert any("measured under this protocol already" in note for note in notes(here))


def test_references_and_samples_are_found_again_and_damaged_ones_are_made_anew(
    embedded: Services,
    environment: Endpoints,
    tmp_path: Path,
    dataset: DatasetManifest,
    checkpoint: CheckpointManifest,
    whole: EvaluationReport,
) -> None:
    here = place(environment, tmp_path)
    spec = spec_of(checkpoint, dataset)
    home = reference_uri(spec, here.root)
    found = find_reference(here.store, home, tmp_path / "references")
    assert found is not None
    assert found.features.shape[0] == 40
    np.testing.assert_allclose(found.moments.mean, found.features.mean(0, dtype=np.float64), atol=1e-5)
    fewer = run(checkpoint, dataset, config(num_images=16, memorisation=False), SAMPLING, resources(), "nobody", here)
    assert fewer.headline == "eval/fd_randconv_16"
    assert not (here.settings.work_dir / "packs").exists(), "with known references and samples nobody needs the data set"
    first = shards_of(NUM_IMAGES, 4)[0]
    drawn = samples_of(here, spec).read(first)
    here.store.put_bytes(spec.samples_uri(here.root) / f"{SampleStore.name(first)}.npy", b"damaged")
    here.store.put_bytes(home / "moments.npy", b"damaged")
    assert samples_of(here, spec).read(first) is None
    assert find_reference(here.store, home, tmp_path / "elsewhere") is None
    here.store.delete(spec.report_uri(here.root) / REPORT_FILE)
    again = run(checkpoint, dataset, config(), SAMPLING, resources(), "nobody", place(environment, tmp_path / "third"))
    assert {key: round(v, 4) for key, v in again.metrics.items()} == {key: round(v, 4) for key, v in whole.metrics.items()}
    assert torch.equal(samples_of(here, spec).read(first), drawn)  # type: ignore[arg-type]
    assert find_reference(here.store, home, tmp_path / "elsewhere") is not None


def test_the_pictures_show_the_samples_and_their_nearest_training_images(
    environment: Endpoints, folder: Path, whole: EvaluationReport, tmp_path: Path
) -> None:
    here = place(environment, folder)
    assert whole.contact_uri is not None
    for uri, size in ((whole.grid_uri, (1024, 384)), (whole.contact_uri, (4 * 264, 4 * 136))):
        here.store.get_file(StoreUri.parse(uri), tmp_path / "picture.png")
        assert Image.open(tmp_path / "picture.png").size == size
    assert 0 <= whole.metrics["eval/memorised_share_24"] <= 1
    page = samples_page(whole, here.store)
    assert page.count("data:image/png;base64,") == 2
    assert "http" not in page.replace("<!doctype html>", "")


def test_inception_of_the_real_shapes_gives_all_four_numbers(
    environment: Endpoints, tmp_path: Path, dataset: DatasetManifest, checkpoint: CheckpointManifest
) -> None:
    weights = write_inception(tmp_path / "inception.pth")
    chosen = EvaluationConfig(
        num_images=8, num_reference=8, weights=str(weights), weights_sha256=file_sha256(weights), kid_subsets=2, bootstrap_replicates=0
    )
    found = run(checkpoint, dataset, chosen, SAMPLING, resources(), "nobody", place(environment, tmp_path))
    names = {
        "fid_8",
        "kid_mean_8",
        "kid_std_8",
        "precision_8",
        "recall_8",
        "is_mean_8",
        "is_std_8",
        "memorised_share_8",
        "nearest_median_8",
    }
    assert {f"eval/{name}" for name in names} <= set(found.metrics)
    assert all(np.isfinite(value) for value in found.metrics.values())
    assert found.protocol["extractor_sha256"] == file_sha256(weights)
    refused = chosen.model_copy(update={"weights_sha256": "0" * 64})
    with pytest.raises(DataRefused, match="weights_sha256") as said:
        run(checkpoint, dataset, refused, SAMPLING, resources(), "nobody", place(environment, tmp_path / "other"))
    assert "releases" in str(said.value.hint)
    assert not list((tmp_path / "other").rglob("spec.json")), "refused before anything was drawn"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"reference_split": "held_out", "num_reference": None, "memorisation": False, "metrics": ("frechet",)}, None),
        ({"metrics": ("frechet", "precision_recall"), "num_images": 3}, "needs at least 4 images"),
    ],
)
def test_what_would_fail_after_the_drawing_is_refused_before(
    environment: Endpoints,
    tmp_path: Path,
    dataset: DatasetManifest,
    checkpoint: CheckpointManifest,
    changes: dict[str, Any],
    said: str | None,
) -> None:
    none_held_out = dataset.model_copy(update={"num_held_out": 0})
    with pytest.raises(BadInput, match=said or "reference_split 'held_out' has 0 image"):
        run(checkpoint, none_held_out, config(**changes), SAMPLING, resources(), "nobody", place(environment, tmp_path))


def test_a_better_challenger_passes_and_a_worse_one_leaves_the_champion_in_place(
    environment: Endpoints, tmp_path: Path, dataset: DatasetManifest, checkpoint: CheckpointManifest, whole: EvaluationReport, folder: Path
) -> None:
    name, small = "duel", config(num_images=16, bootstrap_replicates=10)
    other = commit_checkpoint(place(environment, folder), folder, seed=202, dataset_digest=dataset.digest)
    contexts = iter(place(environment, tmp_path / str(n), run_id=f"duel-{n}") for n in range(8))

    def judged(candidate: CheckpointManifest, evaluation: EvaluationConfig) -> tuple[EvaluationReport, GateDecision]:
        context = next(contexts)
        report = run(candidate, dataset, evaluation, SAMPLING, resources(), name, context)
        decision, page = gate(report, GateConfig(), name, context)
        assert page.startswith("<!doctype html>")
        run_tags = context.tracking.client.get_run(context.tracking.step_run("gate").info.run_id).data.tags
        assert run_tags["gate.decision"] == decision.decision
        assert float(run_tags[f"challenger.{report.headline}"]) == pytest.approx(report.metrics[report.headline])
        if decision.decision == "pass":
            register(candidate, dataset, report, decision, SAMPLING, RegistryConfig(model_name=name), context)
        return report, decision

    registry = Registry(place(environment, tmp_path).tracking, name)
    worse, better = sorted((checkpoint, other), key=lambda one: -quality(one, environment, folder, dataset))
    _, first = judged(worse, config())
    assert first.champion_version is None
    registry.promote("1", reason="the only one", by="test")
    report, decision = judged(better, config())
    assert decision.decision == "pass", decision.reasons
    assert report.champion is not None
    assert report.champion.metrics[HEADLINE] > report.metrics[HEADLINE]
    registry.promote("2", reason="better", by="test")
    # Another protocol than the one that the champion was measured under: it is measured again, from the registry.
    report, decision = judged(worse, small)
    assert decision.decision == "fail", decision.reasons
    assert decision.champion_version == "2"
    assert "champion version 2" in decision.reasons[0]
    assert report.champion is not None
    assert set(report.champion.metrics) == set(report.metrics)
    assert registry.aliases()["champion"] == "2"
    assert [str(version.version) for version in registry.versions()] == ["1", "2"], "nothing was registered"
    # Another average of the champion's own checkpoint is another model: it is compared, not waved through.
    report = run(better, dataset, small, SAMPLING.model_copy(update={"ema": "none"}), resources(), name, next(contexts))
    assert report.champion is not None
    assert not report.champion.is_challenger
    assert report.champion.metrics[report.headline] != report.metrics[report.headline]
    assert run(better, dataset, small, SAMPLING, resources(), name, next(contexts)).champion.is_challenger
    registry.promote("1", reason="moved in between", by="test")
    with pytest.raises(TemporaryFailure, match="champion was version 2 when this was evaluated and is version 1"):
        gate(report, GateConfig(), name, next(contexts))


def quality(checkpoint: CheckpointManifest, environment: Endpoints, folder: Path, dataset: DatasetManifest) -> float:
    report = run(checkpoint, dataset, config(), SAMPLING, resources(), "nobody", place(environment, folder / "quality"))
    return report.metrics[HEADLINE]


def test_a_champion_of_another_size_or_kind_is_not_beaten_unseen(
    environment: Endpoints, tmp_path: Path, dataset: DatasetManifest, checkpoint: CheckpointManifest, whole: EvaluationReport
) -> None:
    here = place(environment, tmp_path, run_id="foreign")
    registry = Registry(here.tracking, "foreign")
    registry.ensure("made elsewhere")
    here.tracking.client.create_model_version("foreign", source="s3://bucket/nowhere", tags={"gate.decision": "pass"})
    registry.promote("1", reason="by hand", by="test")
    report = run(checkpoint, dataset, config(), SAMPLING, resources(), "foreign", here)
    assert report.champion is not None
    assert "cannot be measured" in str(report.champion.problem)
    assert gate(report, GateConfig(), "foreign", here)[0].decision == "fail"
    assert gate(report, GateConfig(no_worse_than_champion=False), "foreign", here)[0].decision == "pass"
