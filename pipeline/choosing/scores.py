"""Measure candidates under one protocol, and compare each with the best.

Promises: all candidates are measured with the same noise; a score that is stored is not measured again; two candidates differ only if
their 95 % intervals do not overlap. The headline metric, of which less is better, decides.
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from components.errors import BadInput
from components.evaluate.evaluate import check, measured_reports
from components.evaluate.spec import EvaluateSpec
from components.ingest.config import DataConfig
from components.manifests import LICENCE_NOT_REQUIRED, CheckpointManifest, DatasetManifest, EvaluationReport
from components.runtime.context import StepContext
from components.storage import ObjectMissing
from components.stores.checkpoints import CheckpointStore
from components.stores.dataset_content import MANIFEST
from components.train.spec import TrainSpec
from model.ema import EmaName
from pipeline.choosing.candidates import Candidate
from pipeline.config import RunConfig
from pipeline.sweeps.ranking import Score

_ANY_DIGEST = "0" * 64


@dataclass(frozen=True)
class Measured:
    """A candidate with its metrics; `profile_error` is how far an EMA that was computed from snapshots is from its profile."""

    candidate: Candidate
    checkpoint: CheckpointManifest
    report: EvaluationReport
    profile_error: float | None

    @property
    def score(self) -> Score:
        """The headline metric with its interval."""
        key = self.report.headline
        interval = self.report.intervals.get(key)
        low, high = (None, None) if interval is None else (interval.low, interval.high)
        return Score(self.candidate.step, self.report.metrics[key], low, high, num_seeds=1)


def best_of(measured: Sequence[Measured]) -> Measured:
    """Return the candidate with the least headline metric; of equal ones the first."""
    return min(measured, key=lambda entry: entry.score.mean)


def verdict(entry: Measured, best: Measured) -> str:
    """Return in words how a candidate compares with the best."""
    if entry is best:
        return "best"
    overlaps = entry.score.overlaps(best.score)
    return "no interval" if overlaps is None else "no difference shown" if overlaps else "worse"


def require_measurable(training: TrainSpec, settings: RunConfig, context: StepContext) -> None:
    """Refuse before anything starts what an evaluation of the training would fail at.

    Raises:
        BadInput: if references, weights of a metric's network or images are missing.
    """
    dataset = training.dataset
    try:
        context.store.get_bytes(context.layout.locate(dataset.uri) / MANIFEST)
    except ObjectMissing as missing:
        raise BadInput(
            f"there are no references to compare with: dataset {dataset.name} {dataset.digest[:12]} is not in {context.root}",
            hint=f"ingest it again: {ingest_command(dataset, settings.data)}",
        ) from missing
    checkpoint = _manifest(training, dataset.uri, _ANY_DIGEST, step=0)
    check(_spec(checkpoint, training, settings, EmaName.of_width(0.1)), context)


def ingest_command(dataset: DatasetManifest, data: DataConfig) -> str:
    """Return the command that ingests `dataset` again, with the other settings of `data` if that is the section it was made from."""
    options = {"source": dataset.source, "name": dataset.name, "image-px": str(dataset.image_px), "license": dataset.licence}
    if dataset.licence_accepted_by != LICENCE_NOT_REQUIRED:
        options["accept-license"] = dataset.licence_accepted_by
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    if (data.source, data.name, data.image_px) == (dataset.source, dataset.name, dataset.image_px):
        others = data.model_dump(exclude_defaults=True, exclude={"source", "name", "image_px", "licence", "licence_accepted_by"})
        words += [f"data.{name}={value}" for name, value in others.items()]
    return shlex.join(["celebdit", "ingest", *words])


def measure(candidates: Sequence[Candidate], training: TrainSpec, settings: RunConfig, context: StepContext) -> list[Measured]:
    """Measure all candidates, in their order.

    Raises:
        DataRefused: if weights or the dataset are corrupt.
    """
    weights = [_find_weights(candidate, training, context) for candidate in candidates]
    specs = [_spec(checkpoint, training, settings, candidate.ema) for candidate, (checkpoint, _) in zip(candidates, weights, strict=True)]
    reports = measured_reports(specs, context)
    return [
        Measured(candidate, checkpoint, report, error)
        for candidate, (checkpoint, error), report in zip(candidates, weights, reports, strict=True)
    ]


def _find_weights(candidate: Candidate, training: TrainSpec, context: StepContext) -> tuple[CheckpointManifest, float | None]:
    """Return the checkpoint that holds the candidate's weights, computed now if none does, and the error of a computed EMA's profile."""
    from components.weights.posthoc_ema import compute_posthoc_ema  # noqa: PLC0415 - imports PyTorch

    key_of, uri = context.layout.key_of, candidate.uri
    if uri is None:
        width = candidate.ema.sigma_rel
        assert width is not None, "candidates are power-function EMAs"
        average = compute_posthoc_ema(training.run_key, width, context, step=candidate.step)
        return _manifest(training, key_of(average.uri), average.checkpoint.digest, step=candidate.step), average.error
    run = context.layout.run(training.run_key)
    home = run.home_of(uri)
    checkpoints = CheckpointStore(context.store, home)
    error = float(str(checkpoints.state(uri)["error"])) if home == run.averages else None
    return _manifest(training, key_of(uri), checkpoints.digest(uri), step=candidate.step), error


def _manifest(training: TrainSpec, uri: str, digest: str, *, step: int) -> CheckpointManifest:
    return CheckpointManifest(
        run_key=training.run_key, uri=uri, digest=digest, step=step, dataset_digest=training.dataset.digest, recipe=training.training_recipe
    )


def _spec(checkpoint: CheckpointManifest, training: TrainSpec, settings: RunConfig, ema: EmaName) -> EvaluateSpec:
    return EvaluateSpec(
        checkpoint=checkpoint,
        model=checkpoint.recipe.model_spec,
        dataset=training.dataset,
        evaluation=settings.evaluation,
        sampling=settings.sampling.model_copy(update={"ema": ema.setting}),
        resources=settings.resources,
    )
