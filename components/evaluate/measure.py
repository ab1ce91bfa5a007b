"""One measurement: workers sample and extract features, then metrics, image grids and a report are stored.

Promises: the report is written last, so an evaluation that has one is finished; samples and features stored before a kill are used again,
and made again if they are damaged; of processes that measure the same at once on this machine one does, and the others wait.
"""

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from components.errors import DataRefused
from components.evaluate.chunks import ENERGY, FAKES, LOGITS, MAIN, MANIFOLD, MIRRORED, NOISE, REALS, load_chunks
from components.evaluate.codec import is_flipped
from components.evaluate.finished import CONTACT_FILE, GRID_FILE, finished_report, store_report
from components.evaluate.metrics.inputs import Energies, Features, MetricInputs
from components.evaluate.metrics.table import Need, is_needed
from components.evaluate.neighbours import Nearest, nearest_training_images
from components.evaluate.reference import Reference, ReferenceCorrupt, find_reference, keep_reference, reference_uri
from components.evaluate.samples import SampleStore, shards_of
from components.evaluate.scores import score
from components.evaluate.spec import EvaluateSpec
from components.evaluate.workers import process_again, run_workers
from components.features.moments import Statistics
from components.manifests import EvaluationReport
from components.reports.image_grid import enlarge, grid, pairs, png
from components.reports.plural import plural
from components.runtime.context import StepContext
from components.storage import StoreUri
from components.stores.dataset_cache import fetch_pack
from components.stores.layout import StoreLayout
from components.stores.quarantine import quarantine
from components.system.locks import lock
from components.system.work_folders import WorkFolder

_GRID_IMAGES = 32
_CONTACT_PAIRS = 16


def measure(spec: EvaluateSpec, fetch_weights_into: Callable[[Path], None], context: StepContext) -> EvaluationReport:
    """Measure the weights that `fetch_weights_into` puts into a folder as `weights.safetensors`, store the report and return it."""
    with _evaluation_folder(spec, context) as folder:
        report = finished_report(spec, context)
        if report is None:
            report = _measure_intact(spec, fetch_weights_into, folder, context)
        shutil.rmtree(folder, ignore_errors=True)
        return report


def _measure_intact(spec: EvaluateSpec, fetch_weights_into: Callable[[Path], None], folder: Path, context: StepContext) -> EvaluationReport:
    """Measure, once more if stored samples or features turn out to be corrupt."""
    try:
        return _measure(spec, fetch_weights_into, folder, context)
    except _PartCorrupt as corrupt:
        context.events.note(f"{corrupt.message}: made again")
        process_again(folder)
        return _measure(spec, fetch_weights_into, folder, context)


def process(fetches: Sequence[tuple[EvaluateSpec, Callable[[Path], None]]], context: StepContext) -> None:
    """Process the images of several evaluations with one start of the workers; `measure` then finds that done.

    Each has the function that puts its weights into a folder, as for `measure`.
    """
    specs: dict[Path, EvaluateSpec] = {}
    known: dict[StoreUri, bool] = {}
    with ExitStack() as stack:
        in_one_order = sorted(fetches, key=lambda entry: str(entry[0].report_uri(context.layout)))  # as all processes lock them
        for spec, fetch_weights_into in in_one_order:
            folder = stack.enter_context(_evaluation_folder(spec, context))
            home = reference_uri(spec, context.layout)
            if home not in known:
                known[home] = _find_reference(spec, context) is not None
            fetch_weights_into(folder)
            specs[folder] = spec.model_copy(update={"reference_known": known[home]})
            known[home] = True  # by the time that the others are measured
        total = sum(spec.num_images for spec in specs.values())
        run_workers(specs, context, what=f"sampling {total} images of {len(specs)} checkpoints or averages")


@contextmanager
def _evaluation_folder(spec: EvaluateSpec, context: StepContext) -> Iterator[Path]:
    """Yield the folder of an evaluation on this machine, which no other process has meanwhile."""
    name = f"{spec.report_uri(context.layout).name}-{spec.evaluation.shard_images}"
    waiting = "another process measures the same checkpoint under this protocol; waiting for it"
    with lock(context.scratch(WorkFolder.EVALUATIONS) / f"{name}.lock", on_wait=lambda: context.events.note(waiting)):
        yield context.scratch(WorkFolder.EVALUATIONS, name)


class _PartCorrupt(DataRefused):
    """Stored samples or features that a metric or an image grid needs are corrupt; they were moved to quarantine."""


def _find_reference(spec: EvaluateSpec, context: StepContext) -> Reference | None:
    """Return the stored features of the references, or None; what is left of damaged ones is moved to quarantine."""
    home = reference_uri(spec, context.layout)
    reference = find_reference(context.store, home, context.scratch(WorkFolder.REFERENCES))
    if reference is None:
        _set_reference_aside(home, "the features of the references are corrupt or incomplete", context)
    return reference


def _set_reference_aside(home: StoreUri, reason: str, context: StepContext) -> None:
    quarantine([item.uri for item in context.store.list(home)], reason, store=context.store, layout=context.layout)


def _measure(spec: EvaluateSpec, fetch_weights_into: Callable[[Path], None], folder: Path, context: StepContext) -> EvaluationReport:
    home = reference_uri(spec, context.layout)
    fetch_weights_into(folder)
    reference = _find_reference(spec, context)
    spec = spec.model_copy(update={"reference_known": reference is not None})
    references = "from storage" if reference else "to be processed"
    drawn = plural(spec.num_images, "image")
    what = f"sampling {drawn} of checkpoint {spec.checkpoint.digest[:12]} with {spec.how_drawn}; references {references}"
    run_workers({folder: spec}, context, what=what)
    if reference is None:
        reference = keep_reference(
            context.store,
            home,
            context.scratch(WorkFolder.REFERENCES),
            main=_rows(folder, REALS, MAIN),
            mirrored=_rows(folder, MIRRORED, MAIN),
            manifold=load_chunks(folder, REALS, MANIFOLD),
        )
    try:
        report, images = _report(spec, _Measured(spec, folder, reference, context), context.layout)
    except ReferenceCorrupt as problem:
        _set_reference_aside(home, problem.message, context)
        raise _PartCorrupt(problem.message, hint="run it again: they will be computed again") from problem
    store_report(report, images, context)
    return report


@dataclass(frozen=True)
class _Measured:
    """The workers' features and samples, from which metrics and image grids are made."""

    spec: EvaluateSpec
    folder: Path
    reference: Reference
    context: StepContext

    @property
    def device(self) -> torch.device:
        cuda = self.spec.resources.device != "cpu" and torch.cuda.is_available()
        return torch.device("cuda" if cuda else "cpu")

    def fakes(self) -> Features:
        main = _rows(self.folder, FAKES, MAIN)
        if not np.isfinite(main).all():
            raise DataRefused("the generated images have non-finite features", hint="the checkpoint is unusable: see its sample grid")
        manifold = load_chunks(self.folder, FAKES, MANIFOLD)
        return Features(main, main if manifold is None else manifold, load_chunks(self.folder, FAKES, LOGITS))

    def reals(self) -> Features:
        evaluation, empty = self.spec.evaluation, np.zeros((0, 0), dtype=np.float32)
        return Features(
            self.reference.features if is_needed(Need.REFERENCE_FEATURES, evaluation) else empty,
            self.reference.manifold if is_needed(Need.MANIFOLD, evaluation) else empty,
        )

    def inputs(self) -> MetricInputs:
        """Return what the metrics are measured on."""
        evaluation, moments = self.spec.evaluation, self.reference.moments
        generated = self.fakes()
        return MetricInputs(
            config=evaluation,
            generated=generated,
            reference=self.reals(),
            moments=Statistics(moments.mean.to(self.device), moments.covariance.to(self.device)),
            device=self.device,
            nearest=self.nearest(generated) if is_needed(Need.NEAREST, evaluation) else None,
            noise=_rows(self.folder, NOISE, MAIN) if is_needed(Need.NOISE, evaluation) else None,
            energies=Energies(*(_rows(self.folder, kind, ENERGY) for kind in (FAKES, REALS)))
            if is_needed(Need.ENERGIES, evaluation)
            else None,
        )

    def nearest(self, fakes: Features) -> Nearest | None:
        """Return the nearest training image of the first samples, or None with fewer than two training images."""
        training = min(self.spec.num_reference, self.spec.dataset.num_images)
        if training < 2:
            return None
        rows = torch.from_numpy(fakes.main[: self.spec.evaluation.memorisation_images]).to(self.device)
        either_way = (self.reference.features, self.reference.mirrored)
        real, mirrored = (torch.from_numpy(np.array(features[:training])).to(self.device) for features in either_way)
        return nearest_training_images(rows, real, mirrored)

    def grid(self) -> bytes:
        """Return the first samples as a PNG grid."""
        return png(grid([enlarge(image) for image in self._samples(range(min(_GRID_IMAGES, self.spec.num_images)))], columns=8))

    def contact_sheet(self, nearest: Nearest) -> bytes:
        """Return the samples that are nearest to a training image, each beside it."""
        closest = nearest.closest(_CONTACT_PAIRS)
        pack = fetch_pack(self.spec.dataset, self.context.store, self.context.scratch(WorkFolder.PACKS), layout=self.context.layout)
        samples = self._samples([match.sample for match in closest])
        real = [np.array(pack.images[match.real]) for match in closest]
        flipped = [match.mirrored != (self.spec.comparison.reference_flip and is_flipped(match.real)) for match in closest]
        shown = [enlarge(image[:, ::-1] if mirror else image) for image, mirror in zip(real, flipped, strict=True)]
        labels = [f"{match.share:.2f}" for match in closest]
        return png(pairs([(enlarge(mine), training) for mine, training in zip(samples, shown, strict=True)], labels))

    def _samples(self, indices: Sequence[int]) -> list[np.ndarray]:
        store = SampleStore(self.context.store, self.spec.samples_uri(self.context.layout), image_px=self.spec.dataset.image_px)
        shards = shards_of(self.spec.num_images, self.spec.evaluation.shard_images)
        read: dict[int, np.ndarray] = {}
        size = self.spec.evaluation.shard_images
        for shard in {index // size for index in indices}:
            images = store.read(shards[shard])
            if images is None:
                problem = f"samples {store.name(shards[shard])} in storage are corrupt or incomplete"
                quarantine(store.objects(shards[shard]), problem, store=self.context.store, layout=self.context.layout)
                raise _PartCorrupt(problem, hint="run it again: they will be sampled again")
            read[shard] = images.permute(0, 2, 3, 1).numpy()
        return [read[index // size][index % size] for index in indices]


def _report(spec: EvaluateSpec, measured: _Measured, layout: StoreLayout) -> tuple[EvaluationReport, dict[str, bytes]]:
    """Return the report of an evaluation and its image grids by name."""
    target, inputs = spec.report_uri(layout), measured.inputs()
    scores = score(spec.evaluation, inputs)
    images = {GRID_FILE: measured.grid()}
    if inputs.nearest is not None:
        images[CONTACT_FILE] = measured.contact_sheet(inputs.nearest)
    report = EvaluationReport(
        uri=layout.key_of(target),
        protocol_digest=spec.protocol.digest,
        protocol=spec.protocol,
        run_key=spec.checkpoint.run_key,
        checkpoint_uri=spec.checkpoint.uri,
        checkpoint_digest=spec.checkpoint.digest,
        checkpoint_step=spec.checkpoint.step,
        dataset_digest=spec.dataset.digest,
        headline=scores.headline,
        metrics=scores.metrics,
        intervals=scores.intervals,
        grid_uri=layout.key_of(target / GRID_FILE),
        contact_uri=None if inputs.nearest is None else layout.key_of(target / CONTACT_FILE),
    )
    return report, images


def _rows(folder: Path, kind: str, part: str) -> np.ndarray:
    rows = load_chunks(folder, kind, part)
    assert rows is not None, f"the workers succeeded, so there are {part} features of {kind}"
    return rows
