"""Finished evaluations: stored with the digests of their files, and verified before they count as finished.

Promises: a report counts only with every image that it shows, all with the bytes that were stored, and only if it is of the checkpoint, the
weights and the protocol that are asked for; what is damaged is moved to quarantine, so that it can be made again at its place.
"""

import hashlib

from components.errors import DataRefused
from components.evaluate.measured import later_metrics
from components.evaluate.spec import REPORT_FILE, EvaluateSpec
from components.manifests import EvaluationReport
from components.reports.listing import list_some
from components.runtime.context import StepContext
from components.storage import ObjectMissing, StoreUri
from components.stores.checksums import damaged_objects, record_checksums
from components.stores.quarantine import quarantine

GRID_FILE = "grid.png"
CONTACT_FILE = "nearest.png"


def finished_report(spec: EvaluateSpec, context: StepContext, *, with_later_metrics: bool = True) -> EvaluationReport | None:
    """Return the report of the evaluation `spec` if it is finished and intact.

    The protocol of a report does not name metrics that presets got later. With `with_later_metrics` a report without those that are asked
    for does not count as finished; it is moved to quarantine, because the complete one takes its place.
    """
    folder = spec.report_uri(context.layout)
    try:
        raw = context.store.get_bytes(folder / REPORT_FILE)
    except ObjectMissing:
        return None
    try:
        report = EvaluationReport.parse(raw, origin=str(folder / REPORT_FILE))
        _require_same(report, spec)
    except DataRefused as problem:
        _set_aside(folder, {REPORT_FILE: problem.message}, context)
        return None
    images = [GRID_FILE] if report.contact_uri is None else [GRID_FILE, CONTACT_FILE]
    damaged = damaged_objects(folder, [REPORT_FILE, *images], store=context.store, layout=context.layout)
    if damaged:
        _set_aside(folder, damaged, context)
        return None
    if with_later_metrics and (later := set(later_metrics(spec.evaluation)) - report.metrics.keys()):
        reason = f"the report of an earlier release has no {min(later)}"
        kept = quarantine([folder / REPORT_FILE], reason, store=context.store, layout=context.layout)
        context.events.note(f"{reason}: measured again, from the stored samples; the old one was moved to {kept}")
        return None
    key_of = context.layout.key_of
    contact = None if report.contact_uri is None else key_of(folder / CONTACT_FILE)
    return report.model_copy(update={"uri": key_of(folder), "grid_uri": key_of(folder / GRID_FILE), "contact_uri": contact})


def store_report(report: EvaluationReport, images: dict[str, bytes], context: StepContext) -> None:
    """Store the image grids of an evaluation by their names, and the report, which commits them, last."""
    folder, raw = context.layout.locate(report.uri), report.model_dump_json().encode()
    sha256 = {name: context.store.put_bytes(folder / name, data) for name, data in images.items()}
    record_checksums(folder, {**sha256, REPORT_FILE: hashlib.sha256(raw).hexdigest()}, store=context.store, layout=context.layout)
    context.store.put_bytes(folder / REPORT_FILE, raw)


def _require_same(report: EvaluationReport, spec: EvaluateSpec) -> None:
    stored = (report.checkpoint_digest, report.ema, report.protocol_digest, report.protocol.digest, report.dataset_digest)
    expected = (spec.checkpoint.digest, spec.sampling.ema, spec.protocol.digest, spec.protocol.digest, spec.dataset.digest)
    if stored != expected or report.headline not in report.metrics:
        raise DataRefused(f"{report.uri} holds the report of another evaluation")


def _set_aside(folder: StoreUri, damaged: dict[str, str], context: StepContext) -> None:
    """Move what is damaged to quarantine, and the report with it: it commits the others."""
    reason = list_some(damaged.values(), most=5, separator="; ")
    objects = [folder / name for name in {**damaged, REPORT_FILE: ""}]
    kept = quarantine(objects, reason, store=context.store, layout=context.layout)
    context.events.note(f"the evaluation at {folder} is damaged and is made again: {reason}; what is left of it was moved to {kept}")
