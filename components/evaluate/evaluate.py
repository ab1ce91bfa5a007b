"""The evaluate step: images from the checkpoint, distances to the data, and the protocol that the numbers were made under.

Promises: every number comes with its protocol; the same checkpoint under the same protocol is measured once; a killed evaluation continues
where it was. Whether a number is good enough is the gate's business.
"""

import base64
import html
import shutil
from pathlib import Path

import numpy as np

from components.checkpoints import CheckpointStore
from components.context import StepContext
from components.errors import DataRefused
from components.evaluate.config import EvaluationConfig
from components.evaluate.frechet import frechet_distance, metric_name, statistics
from components.evaluate.spec import EvaluateSpec
from components.evaluate.worker import FAKES, IMAGES, NOISE, REALS, load_chunks
from components.launch import launch
from components.manifests import CheckpointManifest, DatasetManifest, EvaluationReport
from components.pictures import enlarged, grid, png
from components.resources import ResourcesConfig
from components.storage import DigestMismatch, ObjectMissing, StoreUri
from model.checkpoint import CheckpointInvalid
from model.config import SamplingConfig

REPORT_FILE = "report.json"
GRID_FILE = "grid.png"
_GRID_IMAGES = 32


def run(
    checkpoint: CheckpointManifest,
    dataset: DatasetManifest,
    evaluation: EvaluationConfig,
    sampling: SamplingConfig,
    resources: ResourcesConfig,
    context: StepContext,
) -> EvaluationReport:
    """Measure `checkpoint` against `dataset` and return the report.

    Raises:
        DataRefused: if the checkpoint or the data set is not whole. BadInput: if the extractor's weights are missing.
    """
    spec = EvaluateSpec(checkpoint=checkpoint, dataset=dataset, evaluation=evaluation, sampling=sampling, resources=resources)
    target = context.root.join(f"runs/{checkpoint.run_key}/evaluations") / f"{spec.protocol_digest()[:16]}-{checkpoint.digest[:16]}"
    report = _finished(context, target)
    if report is None:
        report = _measure(spec, target, context)
    else:
        context.events.note(f"checkpoint {checkpoint.digest[:12]} is measured under this protocol already, nothing to do")
    _publish(report, spec, context)
    return report


def _finished(context: StepContext, target: StoreUri) -> EvaluationReport | None:
    try:
        return EvaluationReport.parse(context.store.get_bytes(target / REPORT_FILE), origin=str(target / REPORT_FILE))
    except ObjectMissing:
        return None


def _measure(spec: EvaluateSpec, target: StoreUri, context: StepContext) -> EvaluationReport:
    folder = context.scratch("evaluations", target.name)
    _fetch_weights(spec, folder, context)
    spec_path = folder / "spec.json"
    spec.dump(spec_path)
    context.events.note(f"drawing {spec.evaluation.num_images} images with {spec.sampling.sampler}, {spec.sampling.num_steps} steps")
    launch("components.evaluate.worker", spec_path, processes=spec.resources.processes, threads=spec.resources.threads)
    images = load_chunks(folder, IMAGES)[:_GRID_IMAGES].transpose(0, 2, 3, 1)
    context.store.put_bytes(target / GRID_FILE, png(grid([enlarged(tile) for tile in images], columns=8)))
    headline, metrics = _distances(spec, folder)
    report = EvaluationReport(
        uri=str(target),
        protocol_digest=spec.protocol_digest(),
        protocol=spec.protocol(),
        run_key=spec.checkpoint.run_key,
        checkpoint_uri=spec.checkpoint.uri,
        checkpoint_digest=spec.checkpoint.digest,
        checkpoint_step=spec.checkpoint.step,
        dataset_digest=spec.dataset.digest,
        headline=headline,
        metrics=metrics,
        grid_uri=str(target / GRID_FILE),
    )
    context.store.put_bytes(target / REPORT_FILE, report.model_dump_json().encode())
    shutil.rmtree(folder, ignore_errors=True)
    return report


def _fetch_weights(spec: EvaluateSpec, folder: Path, context: StepContext) -> None:
    """Put the weights that are to be measured beside the spec, under one name."""
    group = "weights" if spec.sampling.ema == "none" else f"ema-{spec.sampling.ema}"
    uri = StoreUri.parse(spec.checkpoint.uri)
    checkpoints = CheckpointStore(context.store, context.root / "runs" / spec.checkpoint.run_key)
    try:
        fetched = checkpoints.fetch(uri, folder / "checkpoint", files=[f"{group}.safetensors"])
    except (ObjectMissing, DigestMismatch, CheckpointInvalid) as error:
        raise DataRefused(f"checkpoint {uri} is not whole: {error}", hint="run the train step again") from error
    if fetched.digest != spec.checkpoint.digest:
        raise DataRefused(f"checkpoint {uri} has digest {fetched.digest}, the train step handed on {spec.checkpoint.digest}")
    (fetched.directory / f"{group}.safetensors").replace(folder / "weights.safetensors")


def _distances(spec: EvaluateSpec, folder: Path) -> tuple[str, dict[str, float]]:
    """Return the headline's key and all numbers."""
    fakes, reals = load_chunks(folder, FAKES), load_chunks(folder, REALS)
    if not np.isfinite(fakes).all():
        raise DataRefused("the generated images have non-finite features", hint="the checkpoint is not usable: look at its sample grid")
    reference = statistics(reals)
    headline = metric_name(spec.evaluation.extractor, spec.evaluation.num_images)
    metrics = {headline: round(frechet_distance(statistics(fakes), reference), 6)}
    if spec.evaluation.extractor == "random-conv":
        metrics[f"{headline}_of_noise"] = round(frechet_distance(statistics(load_chunks(folder, NOISE)), reference), 6)
    return headline, metrics


def _publish(report: EvaluationReport, spec: EvaluateSpec, context: StepContext) -> None:
    """Show the numbers in MLflow: on the evaluation's own run, and on the training's at the checkpoint's step."""
    tracking = context.tracking
    with tracking.running(tracking.step_run("evaluate")) as run_id:
        tracking.tag(run_id, {"checkpoint.digest": report.checkpoint_digest, "protocol.digest": report.protocol_digest})
        tracking.values(run_id, report.metrics, step=report.checkpoint_step)
        tracking.text(run_id, report.model_dump_json(indent=2), "evaluation.json")
        picture = context.scratch("pictures") / f"{report.checkpoint_digest[:16]}-{GRID_FILE}"
        context.store.get_file(StoreUri.parse(report.grid_uri), picture)
        tracking.artifact(run_id, picture, "samples")
        tracking.dataset(
            run_id,
            name=spec.dataset.name,
            digest=spec.dataset.digest,
            uri=spec.dataset.uri,
            source=spec.dataset.source,
            context="reference",
            profile={"num_images": spec.num_reference},
        )
    trained = tracking.step_run("train", run_key=report.run_key, name=f"train-{report.run_key}").info.run_id
    tracking.evaluated_checkpoint(trained, report)


def samples_page(report: EvaluationReport, context: StepContext) -> str:
    """Return a page with the sample grid and the numbers, complete in itself, for KFP's run page."""
    picture = base64.b64encode(context.store.get_bytes(StoreUri.parse(report.grid_uri))).decode()
    rows = "".join(f"<tr><td>{html.escape(key)}</td><td>{value:.4g}</td></tr>" for key, value in sorted(report.metrics.items()))
    return (
        f"<h3>Checkpoint {html.escape(report.checkpoint_digest[:12])}, step {report.checkpoint_step}</h3>"
        f"<table>{rows}</table><img alt='samples' src='data:image/png;base64,{picture}'>"
    )
