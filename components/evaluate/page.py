"""What an evaluation looks like on KFP's run page: numbers with their intervals, the protocol, samples, and the nearest training images."""

from components.manifests import EvaluationReport
from components.pages import heading, page, picture, table
from components.storage import ObjectStore, StoreUri


def samples_page(report: EvaluationReport, store: ObjectStore) -> str:
    """Return a page that is complete in itself."""
    numbers = [(key, value, _interval(report, key)) for key, value in sorted(report.metrics.items())]
    parts = [
        table(("metric", "value", "95 % interval"), numbers),
        heading("Samples"),
        picture(store.get_bytes(StoreUri.parse(report.grid_uri)), "the first images, by their index"),
    ]
    if report.contact_uri is not None:
        shown = picture(store.get_bytes(StoreUri.parse(report.contact_uri)), "sample | nearest training image, the closest pairs first")
        parts += [heading("Is it copying?"), shown]
    parts += [heading("Protocol"), table(("what", "value"), sorted(report.protocol.items()))]
    return page(f"Checkpoint {report.checkpoint_digest[:12]}, step {report.checkpoint_step}", parts)


def _interval(report: EvaluationReport, key: str) -> str:
    found = report.intervals.get(key)
    return "" if found is None else f"{found.low:.5g} to {found.high:.5g}"
