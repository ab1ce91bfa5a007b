"""The evaluation's page for KFP's run page: metrics with their intervals, samples, the nearest training images and the protocol."""

from components.manifests import EvaluationReport, MetricInterval
from components.reports.html import flat_rows, image_source, render
from components.storage import ObjectStore
from components.stores.layout import StoreLayout

_OCTAVES = {1: "finer than 4 px", 2: "4 to 8 px", 3: "8 to 16 px", 4: "coarser than 16 px"}
"""Octaves of the metric `spectrum` by the length of a wave."""


def samples_page(report: EvaluationReport, store: ObjectStore, layout: StoreLayout) -> str:
    """Return a page that is complete in itself."""
    return render(
        "evaluation.html",
        title=f"Checkpoint {report.checkpoint_digest[:12]}, step {report.checkpoint_step}",
        report=report,
        metrics=report.metric_rows(),
        samples=image_source(store.get_bytes(layout.locate(report.grid_uri))),
        nearest=None if report.contact_uri is None else image_source(store.get_bytes(layout.locate(report.contact_uri))),
        octaves=_octave_rows(report),
        protocol=flat_rows(report.protocol.model_dump(mode="json")),
    )


def _octave_rows(report: EvaluationReport) -> list[tuple[str, float, MetricInterval | None]]:
    """Return the energy ratio of each octave with its interval, the finest first; none if they were not measured."""
    return [
        (label, report.metrics[key], report.intervals.get(key))
        for octave, label in _OCTAVES.items()
        for key in report.metrics
        if key.startswith(f"eval/spectrum_octave_{octave}_") and not key.endswith("_std")
    ]
