"""The evaluate step on real S3 and a real MLflow server: any number of ranks, kills, what is kept, what is shown."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from celebdit_testing.evaluations import (
    HEADLINE,
    NUM_IMAGES,
    SAMPLING,
    config,
    place,
    resources,
    run,
    run_in_processes,
)
from celebdit_testing.inception import write_inception, write_vgg16
from celebdit_testing.steps import notes
from celebdit_testing.trained import commit_checkpoint
from celebdit_testing.waiting import wait_until
from PIL import Image
from torch_fidelity.utils import create_feature_extractor

from components.errors import BadInput, DataRefused
from components.evaluate.config import EvaluationConfig
from components.evaluate.measured import measured_metrics
from components.evaluate.page import samples_page
from components.evaluate.reference import find_reference, reference_uri
from components.evaluate.samples import SampleStore, shards_of
from components.evaluate.spec import REPORT_FILE, EvaluateSpec
from components.manifests import CheckpointManifest, DatasetManifest, EvaluationReport
from components.runtime.context import StepContext
from components.storage import StoreUri, file_sha256
from components.stores.dataset_cache import fetch_pack
from pipeline.services import Endpoints, Services


@pytest.fixture(scope="module")
def checkpoint(environment: Endpoints, folder: Path, dataset: DatasetManifest) -> CheckpointManifest:
    return commit_checkpoint(place(environment, folder), folder, seed=101, dataset_digest=dataset.digest)


@pytest.fixture(scope="module")
def first_report(environment: Endpoints, folder: Path, dataset: DatasetManifest, checkpoint: CheckpointManifest) -> EvaluationReport:
    """An evaluation by one process that nothing disturbed."""
    return run(checkpoint, dataset, config(), SAMPLING, resources(), "no-model", place(environment, folder / "first"))


def moved(checkpoint: CheckpointManifest, source: StepContext, target: StepContext) -> CheckpointManifest:
    """The same checkpoint, and the datasets, in another store."""
    for item in [*source.store.list(source.layout.locate(checkpoint.uri)), *source.store.list(source.root / "datasets")]:
        target.store.put_bytes(target.layout.locate(source.layout.key_of(item.uri)), source.store.get_bytes(item.uri))
    return checkpoint


def test_every_metric_comes_with_its_complete_protocol(
    first_report: EvaluationReport, checkpoint: CheckpointManifest, dataset: DatasetManifest
) -> None:
    assert first_report.headline == HEADLINE
    protocol = first_report.protocol.model_dump(mode="json")
    assert protocol["digest"] == first_report.protocol_digest
    expected = {"name": "custom", "num_images": 24, "num_reference": 40, "reference_split": "all", "codec": "png", "resize": "none"}
    assert expected.items() <= protocol.items()
    assert protocol["ema"] == "0.1"
    assert protocol["dataset_digest"] == dataset.digest
    assert protocol["checkpoint_digest"] == checkpoint.digest
    assert protocol["sampling"]["sampler"] == "euler"
    assert first_report.metrics[f"{HEADLINE}_std"] == pytest.approx(first_report.intervals[HEADLINE].std, rel=1e-4)
    assert first_report.intervals[HEADLINE].low < first_report.metrics[HEADLINE] < first_report.intervals[HEADLINE].high
    assert set(first_report.metrics) == set(measured_metrics(config()))


@pytest.mark.fault
@pytest.mark.slow
def test_two_processes_draw_the_same_images_and_find_the_same_numbers(
    environment: Endpoints,
    tmp_path: Path,
    dataset: DatasetManifest,
    checkpoint: CheckpointManifest,
    first_report: EvaluationReport,
    folder: Path,
) -> None:
    here = place(environment, tmp_path, part="two-processes")
    moved_checkpoint = moved(checkpoint, place(environment, folder), here)
    again = run_in_processes(2, moved_checkpoint, dataset, here)
    assert again.protocol_digest == first_report.protocol_digest
    for key, value in first_report.metrics.items():
        assert again.metrics[key] == pytest.approx(value, rel=1e-5, abs=1e-5), key
    first = place(environment, folder)
    for shard in shards_of(NUM_IMAGES, 4):
        mine, theirs = (
            samples_of(context, spec_of(cp, dataset)).read(shard) for context, cp in ((first, checkpoint), (here, moved_checkpoint))
        )
        assert mine is not None
        assert theirs is not None
        assert torch.equal(mine, theirs)


def spec_of(checkpoint: CheckpointManifest, dataset: DatasetManifest, **changes: Any) -> EvaluateSpec:
    return EvaluateSpec(
        checkpoint=checkpoint,
        model=checkpoint.recipe.model_spec,
        dataset=dataset,
        evaluation=config(**changes),
        sampling=SAMPLING,
        resources=resources(),
    )


def samples_of(context: StepContext, spec: EvaluateSpec) -> SampleStore:
    return SampleStore(context.store, spec.samples_uri(context.layout), image_px=16)


@pytest.mark.fault
@pytest.mark.slow
def test_a_killed_evaluation_continues_on_another_machine(
    embedded: Services,
    environment: Endpoints,
    tmp_path: Path,
    dataset: DatasetManifest,
    checkpoint: CheckpointManifest,
    first_report: EvaluationReport,
    folder: Path,
) -> None:
    here = place(environment, tmp_path / "a", part="killed")
    moved_checkpoint = moved(checkpoint, place(environment, folder), here)
    spec = spec_of(moved_checkpoint, dataset)
    work = tmp_path / "a" / "direct"
    work.mkdir(parents=True)
    spec.dump(work / "spec.json")
    ema = next(item.uri for item in here.store.list(here.layout.locate(moved_checkpoint.uri)) if item.uri.name == "ema-0.1.safetensors")
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
    wait_until(lambda: len(store.committed_shards()) >= 2, timeout_s=120, every_s=0.005, alive=lambda: worker.poll() is None)
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    stored_names = store.committed_shards()
    assert 2 <= len(stored_names) < 6
    written_at_ns = {name: written_ns(embedded, spec.samples_uri(here.layout) / f"{name}.npy") for name in stored_names}
    finished = run(
        moved_checkpoint, dataset, config(), SAMPLING, resources(), "no-model", place(environment, tmp_path / "b", part="killed")
    )
    assert {name: written_ns(embedded, spec.samples_uri(here.layout) / f"{name}.npy") for name in stored_names} == written_at_ns, (
        "not drawn again"
    )
    assert {key: round(value, 4) for key, value in finished.metrics.items()} == {
        key: round(v, 4) for key, v in first_report.metrics.items()
    }


def written_ns(embedded: Services, uri: StoreUri) -> int:
    """When the embedded server wrote an object."""
    return (embedded.home / "s3" / uri.bucket / uri.key).stat().st_mtime_ns


def test_an_evaluation_that_is_finished_is_not_done_again(
    environment: Endpoints, tmp_path: Path, dataset: DatasetManifest, checkpoint: CheckpointManifest, first_report: EvaluationReport
) -> None:
    here = place(environment, tmp_path)
    assert run(checkpoint, dataset, config(), SAMPLING, resources(), "no-model", here) == first_report
    assert any("measured under this protocol already" in note for note in notes(here))


def test_a_report_of_an_earlier_release_gets_the_metrics_that_it_lacks_from_the_same_samples(
    environment: Endpoints, folder: Path, dataset: DatasetManifest, checkpoint: CheckpointManifest
) -> None:
    here = place(environment, folder / "later", part="later-metrics")
    moved(checkpoint, place(environment, folder), here)
    names = ("frechet", "precision_recall", "mind", "density_coverage", "copies")
    before, after = (config(metrics=metrics, num_images=12) for metrics in (names, (*names, "spectrum")))
    early = run(checkpoint, dataset, before, SAMPLING, resources(), "no-model", here)
    late = run(checkpoint, dataset, after, SAMPLING, resources(), "no-model", here)
    assert late.protocol_digest == early.protocol_digest
    assert late.metrics.items() >= early.metrics.items(), "the same samples, references and features"
    assert late.metrics.keys() - early.metrics.keys() == set(measured_metrics(after)) - set(measured_metrics(before))
    assert 0 < late.metrics["eval/spectrum_octave_1_12"] < 100
    assert any("has no eval/spectrum_error_12: measured again" in note for note in notes(here))
    page = samples_page(late, here.store, here.layout)
    assert "finer than 4 px" in page
    assert run(checkpoint, dataset, before, SAMPLING, resources(), "no-model", here) == late, "what has more is finished, too"


@pytest.mark.fault
@pytest.mark.slow
def test_references_and_samples_are_reused_and_damaged_ones_are_computed_again(
    embedded: Services,
    environment: Endpoints,
    tmp_path: Path,
    dataset: DatasetManifest,
    checkpoint: CheckpointManifest,
    first_report: EvaluationReport,
) -> None:
    here = place(environment, tmp_path)
    spec = spec_of(checkpoint, dataset)
    home = reference_uri(spec, here.layout)
    reference = find_reference(here.store, home, tmp_path / "references")
    assert reference is not None
    assert reference.features.shape[0] == 40
    np.testing.assert_allclose(reference.moments.mean, reference.features.mean(0, dtype=np.float64), atol=1e-5)
    fewer = run(checkpoint, dataset, config(num_images=16, memorisation=False), SAMPLING, resources(), "no-model", here)
    assert fewer.headline == "eval/fd_randconv_16"
    assert not (here.settings.work_dir / "packs").exists(), "with stored references and samples the dataset is not read"
    first = shards_of(NUM_IMAGES, 4)[0]
    drawn = samples_of(here, spec).read(first)
    here.store.put_bytes(spec.samples_uri(here.layout) / f"{SampleStore.name(first)}.npy", b"damaged")
    here.store.put_bytes(home / "moments.npy", b"damaged")
    assert samples_of(here, spec).read(first) is None
    assert find_reference(here.store, home, tmp_path / "elsewhere") is None
    here.store.delete(spec.report_uri(here.layout) / REPORT_FILE)
    again = run(checkpoint, dataset, config(), SAMPLING, resources(), "no-model", place(environment, tmp_path / "third"))
    assert {key: round(v, 4) for key, v in again.metrics.items()} == {key: round(v, 4) for key, v in first_report.metrics.items()}
    assert torch.equal(samples_of(here, spec).read(first), drawn)  # type: ignore[arg-type]
    assert find_reference(here.store, home, tmp_path / "elsewhere") is not None


def test_samples_that_are_damaged_before_they_are_shown_are_drawn_by_the_next_try(
    environment: Endpoints, tmp_path: Path, dataset: DatasetManifest, folder: Path
) -> None:
    here = place(environment, tmp_path)
    other_checkpoint = commit_checkpoint(here, tmp_path, seed=303, dataset_digest=dataset.digest)
    few, spec = config(num_images=8, memorisation=False), spec_of(other_checkpoint, dataset)
    damaged = spec.samples_uri(here.layout) / f"{SampleStore.name(range(4))}.npy"

    def damage() -> None:
        here.store.put_bytes(damaged, b"damaged")

    with pytest.raises(DataRefused, match="in storage are corrupt or incomplete"):
        run(other_checkpoint, dataset, few, SAMPLING, resources(), "no-model", here, then=damage)
    assert run(other_checkpoint, dataset, few, SAMPLING, resources(), "no-model", here).headline == "eval/fd_randconv_8"


def test_jpegs_and_pngs_of_the_same_images_give_other_numbers_under_other_protocols(
    environment: Endpoints, tmp_path: Path, dataset: DatasetManifest, checkpoint: CheckpointManifest, first_report: EvaluationReport
) -> None:
    jpeg = run(
        checkpoint, dataset, config(codec="jpeg", reference_flip=True), SAMPLING, resources(), "no-model", place(environment, tmp_path)
    )
    assert jpeg.protocol_digest != first_report.protocol_digest
    assert jpeg.headline == f"{HEADLINE}_jpeg"
    assert set(jpeg.metrics) == set(measured_metrics(config(codec="jpeg")))
    assert jpeg.metrics[jpeg.headline] != pytest.approx(first_report.metrics[HEADLINE], rel=1e-4)


@pytest.mark.fault
@pytest.mark.slow
def test_precision_and_recall_on_vgg16_of_the_real_shapes(
    environment: Endpoints, tmp_path: Path, dataset: DatasetManifest, checkpoint: CheckpointManifest
) -> None:
    weights = write_vgg16(tmp_path / "vgg16.pth")
    vgg = {"vgg_weights": str(weights), "vgg_weights_sha256": file_sha256(weights), "metrics": ("frechet", "precision_recall")}
    chosen, here = config(num_images=4, num_reference=4, memorisation=False, **vgg), place(environment, tmp_path)
    report = run(checkpoint, dataset, chosen, SAMPLING, resources(), "no-model", here)
    assert {"eval/fd_randconv_4", "eval/precision_4", "eval/recall_4"} <= set(report.metrics), "VGG16's are not marked as random-conv's"
    assert sorted(report.metrics) == sorted(measured_metrics(chosen))
    assert report.protocol.model_dump()["precision_recall_extractor"] == f"vgg16-{file_sha256(weights)}"
    assert 0 <= report.intervals["eval/precision_4"].low < report.intervals["eval/precision_4"].high <= 1
    spec = spec_of(checkpoint, dataset, num_images=4, num_reference=4, memorisation=False, **vgg)
    reference = find_reference(here.store, reference_uri(spec, here.layout), tmp_path / "references")
    assert reference is not None
    assert reference.manifold.shape == (4, 4096)
    # Torch-fidelity's own extractor on the same images.
    own = create_feature_extractor("vgg16", ["fc2_relu"], cuda=False, verbose=False, feature_extractor_weights_path=str(weights))
    pack = fetch_pack(dataset, here.store, tmp_path / "pack", layout=here.layout)
    expected = own(torch.from_numpy(np.array(pack.images[:4])).permute(0, 3, 1, 2))[0]
    np.testing.assert_allclose(reference.manifold, expected.numpy(), rtol=1e-3, atol=1e-3 * float(expected.max()))


def test_the_images_show_the_samples_and_their_nearest_training_images(
    environment: Endpoints, folder: Path, first_report: EvaluationReport, tmp_path: Path
) -> None:
    here = place(environment, folder)
    assert first_report.contact_uri is not None
    for uri, size in ((first_report.grid_uri, (1024, 384)), (first_report.contact_uri, (4 * 268, 4 * 158))):
        here.store.get_file(here.layout.locate(uri), tmp_path / "image.png")
        assert Image.open(tmp_path / "image.png").size == size
    assert 0 <= first_report.metrics["eval/memorised_share_24"] <= 1
    page = samples_page(first_report, here.store, here.layout)
    assert page.count("data:image/png;base64,") == 2
    assert "http:" not in page
    assert "https:" not in page


@pytest.mark.fault
@pytest.mark.slow
def test_inception_of_the_real_shapes_gives_all_four_numbers(
    environment: Endpoints, tmp_path: Path, dataset: DatasetManifest, checkpoint: CheckpointManifest
) -> None:
    weights = write_inception(tmp_path / "inception.pth")
    chosen = EvaluationConfig(
        num_images=8, num_reference=8, weights=str(weights), weights_sha256=file_sha256(weights), kid_subsets=2, bootstrap_replicates=0
    )
    report = run(checkpoint, dataset, chosen, SAMPLING, resources(), "no-model", place(environment, tmp_path))
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
    assert {f"eval/{name}" for name in names} <= set(report.metrics)
    assert set(report.metrics) == set(measured_metrics(chosen))
    assert all(np.isfinite(value) for value in report.metrics.values())
    assert report.protocol.extractor_sha256 == file_sha256(weights)
    refused = chosen.model_copy(update={"weights_sha256": "0" * 64})
    with pytest.raises(DataRefused, match="weights_sha256") as raised:
        run(checkpoint, dataset, refused, SAMPLING, resources(), "no-model", place(environment, tmp_path / "other"))
    assert "releases" in str(raised.value.hint)
    assert not list((tmp_path / "other").rglob("spec.json")), "refused before anything was drawn"


@pytest.mark.parametrize(
    ("changes", "message"),
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
    message: str | None,
) -> None:
    none_held_out = dataset.model_copy(update={"num_held_out": 0})
    with pytest.raises(BadInput, match=message or "reference_split 'held_out' has 0 image"):
        run(checkpoint, none_held_out, config(**changes), SAMPLING, resources(), "no-model", place(environment, tmp_path))
