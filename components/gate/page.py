"""The gate's decision as a page: the verdict, every figure beside the champion's and the bounds, samples of both, and the protocol."""

from components.gate.config import GateConfig
from components.manifests import EvaluationReport, GateDecision, MetricInterval
from components.reports.html import CONTACT_CAPTION, bullets, details, heading, page, paragraph, picture, table
from components.storage import ObjectMissing, ObjectStore, StoreUri


def decision_page(decision: GateDecision, report: EvaluationReport, config: GateConfig, store: ObjectStore) -> str:
    """Return a page that is complete in itself."""
    champion = report.champion
    step = f"Checkpoint {report.checkpoint_digest[:12]} of run {report.run_key}, step {report.checkpoint_step}."
    parts = [paragraph(step), bullets(decision.reasons), heading("Figures"), _figures(report, config)]
    shown = [(report.grid_uri, "challenger: the first images by their index")]
    if champion is not None and champion.grid_uri is not None and not champion.is_challenger:
        shown.append((champion.grid_uri, f"champion, version {champion.version}: the same seeds"))
    if report.contact_uri is not None:
        shown.append((report.contact_uri, CONTACT_CAPTION))
    pictures = [(_read(store, uri), caption) for uri, caption in shown]
    parts += [heading("Pictures"), *(picture(png, caption) for png, caption in pictures if png is not None)]
    parts += [heading("Protocol"), details(report.protocol.model_dump(mode="json"))]
    return page(f"Gate: {decision.decision}", parts, kind=decision.decision)


def _figures(report: EvaluationReport, config: GateConfig) -> str:
    champion = report.champion
    theirs = {} if champion is None else champion.metrics
    spans = {} if champion is None else champion.intervals
    name = "champion" if champion is None else f"champion (version {champion.version})"
    rows = [
        (key, value, _span(interval), theirs.get(key, ""), _span(spans.get(key)), _bound(config, key))
        for key, value, interval in report.numbers()
    ]
    return table(("metric", "challenger", "95 % interval", name, "95 % interval", "asked"), rows)


def _span(interval: MetricInterval | None) -> str:
    return "" if interval is None else interval.text()


def _bound(config: GateConfig, key: str) -> str:
    asked = [f"at most {config.at_most[key]:.5g}"] if key in config.at_most else []
    asked += [f"at least {config.at_least[key]:.5g}"] if key in config.at_least else []
    return ", ".join(asked)


def _read(store: ObjectStore, uri: str) -> bytes | None:
    try:
        return store.get_bytes(StoreUri.parse(uri))
    except ObjectMissing:
        return None
