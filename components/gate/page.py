"""The gate's decision as a page: the verdict, every metric beside the champion's and the bounds, samples of both, and the protocol."""

from dataclasses import dataclass

from components.gate.bounds import BoundCheck
from components.manifests import EvaluationReport, GateDecision, MetricInterval
from components.reports.html import flat_rows, image_source, render
from components.storage import ObjectMissing, ObjectStore, StoreUri
from components.stores.layout import StoreLayout


@dataclass(frozen=True)
class MetricRow:
    """One metric of the challenger, the champion's beside it."""

    key: str
    value: float
    interval: MetricInterval | None
    champion_value: float | None
    champion_interval: MetricInterval | None
    checks: list[BoundCheck]


def decision_page(
    decision: GateDecision, report: EvaluationReport, checks: list[BoundCheck], store: ObjectStore, layout: StoreLayout
) -> str:
    """Return a page that is complete in itself; an image that is not stored any more is left out."""
    champion = report.champion
    grids = [(report.grid_uri, "Challenger: the first samples by index.")]
    if champion is not None and champion.grid_uri is not None and not champion.is_challenger:
        drawn = "" if champion.sampling is None else f" Drawn with {champion.sampling}, as it is served."
        grids.append((champion.grid_uri, f"Champion, version {champion.version}: the same seeds.{drawn}"))
    samples = [(_image(store, layout.locate(uri)), caption) for uri, caption in grids]
    return render(
        "gate.html",
        title=f"Gate: {decision.decision}",
        decision=decision,
        report=report,
        champion=champion,
        rows=_rows(report, checks),
        samples=[(source, caption) for source, caption in samples if source is not None],
        nearest=None if report.contact_uri is None else _image(store, layout.locate(report.contact_uri)),
        protocol=flat_rows(report.protocol.model_dump(mode="json")),
    )


def _rows(report: EvaluationReport, checks: list[BoundCheck]) -> list[MetricRow]:
    champion = report.champion
    values, intervals = ({}, {}) if champion is None else (champion.metrics, champion.intervals)
    return [
        MetricRow(key, value, interval, values.get(key), intervals.get(key), [check for check in checks if check.key == key])
        for key, value, interval in report.metric_rows()
    ]


def _image(store: ObjectStore, uri: StoreUri) -> str | None:
    try:
        return image_source(store.get_bytes(uri))
    except ObjectMissing:
        return None
