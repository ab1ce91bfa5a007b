"""What an evaluation looks like on KFP's run page: numbers with their intervals, the protocol, samples, and the nearest training images."""

from components.manifests import EvaluationReport
from components.reports.html import CONTACT_CAPTION, details, heading, page, picture, table
from components.storage import ObjectStore, StoreUri


def samples_page(report: EvaluationReport, store: ObjectStore) -> str:
    """Return a page that is complete in itself."""
    numbers = [(key, value, "" if interval is None else interval.text()) for key, value, interval in report.numbers()]
    parts = [
        table(("metric", "value", "95 % interval"), numbers),
        heading("Samples"),
        picture(store.get_bytes(StoreUri.parse(report.grid_uri)), "the first images, by their index"),
    ]
    if report.contact_uri is not None:
        parts += [heading("Is it copying?"), picture(store.get_bytes(StoreUri.parse(report.contact_uri)), CONTACT_CAPTION)]
    parts += [heading("Protocol"), details(report.protocol.model_dump(mode="json"))]
    return page(f"Checkpoint {report.checkpoint_digest[:12]}, step {report.checkpoint_step}", parts)
