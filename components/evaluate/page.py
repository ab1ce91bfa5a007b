"""The evaluation's page for KFP's run page: metrics with their intervals, samples, the nearest training images and the protocol."""

from components.manifests import EvaluationReport
from components.reports.html import flat_rows, image_source, render
from components.storage import ObjectStore
from components.stores.layout import StoreLayout


def samples_page(report: EvaluationReport, store: ObjectStore, layout: StoreLayout) -> str:
    """Return a page that is complete in itself."""
    return render(
        "evaluation.html",
        title=f"Checkpoint {report.checkpoint_digest[:12]}, step {report.checkpoint_step}",
        report=report,
        metrics=report.metric_rows(),
        samples=image_source(store.get_bytes(layout.locate(report.grid_uri))),
        nearest=None if report.contact_uri is None else image_source(store.get_bytes(layout.locate(report.contact_uri))),
        protocol=flat_rows(report.protocol.model_dump(mode="json")),
    )
