"""The gate step: pass or fail, with the reasons.

Promises: the decision is a pure function of the report and the configuration; the report has the champion's metrics under the same
protocol, but for the sampler beside a student of few steps, which the reason names; a difference that chance can explain does not fail a
challenger; a champion that could not be measured is never beaten. Does not register or promote.
"""

import hashlib
import math
from collections.abc import Mapping

from components.errors import DataRefused, TemporaryFailure
from components.gate.bounds import check_bounds
from components.gate.config import GateConfig
from components.gate.page import decision_page
from components.manifests import NORMAL_QUANTILE, ChampionScores, EvaluationReport, GateDecision, MetricInterval
from components.registry.client import Registry
from components.registry.promotions.moves import CHAMPION
from components.registry.tags import VersionTags
from components.runtime.context import StepContext
from components.storage import StoreUri
from components.stores.quarantine import quarantine
from components.tracking.pipeline_run import Facts, describe_pipeline_run
from components.tracking.tags import TAG_GATE, TAG_GATE_REASONS, TAG_GATE_RUN

PAGE_FILE = "gate.html"


def run(report: EvaluationReport, config: GateConfig, model_name: str, context: StepContext) -> tuple[GateDecision, str]:
    """Decide on the checkpoint of `report`, log the decision to MLflow, and return it with its page.

    Raises:
        TemporaryFailure: if the champion changed since the report was made.
    """
    registry = Registry(context.tracking, model_name)
    if config.no_worse_than_champion or config.better_than_champion:
        _check_same_champion(report, registry)
    decision = decide(report, config)
    page = decision_page(decision, report, check_bounds(report, config), context.store, context.layout)
    uri = context.layout.locate(report.uri) / f"gate-{context.settings.pipeline_run_id}.html"
    _store_page(uri, page.encode(), context)
    decision = decision.model_copy(update={"page_uri": context.layout.key_of(uri)})
    tracking = context.tracking
    with tracking.mark_running(tracking.step_run("gate")) as run_id:
        tracking.set_tags(run_id, _tags(decision, report))
        tracking.log_text(run_id, decision.model_dump_json(indent=2), "gate.json")
        tracking.log_text(run_id, page, PAGE_FILE)
    shown = {TAG_GATE: decision.decision, TAG_GATE_REASONS: "; ".join(decision.reasons), TAG_GATE_RUN: run_id}
    describe_pipeline_run(tracking, Facts(tags=shown))
    context.events.note(f"{decision.decision} ({short_reason(decision)})")
    return decision, page


def _store_page(uri: StoreUri, page: bytes, context: StepContext) -> None:
    """Store the page of a decision; a repeated step finds its own there, or else moves what it finds to quarantine."""
    try:
        context.store.check(uri, hashlib.sha256(page).hexdigest())
    except DataRefused as problem:  # missing, or other bytes
        quarantine([uri], problem.message, store=context.store, layout=context.layout)
        context.store.put_bytes(uri, page)


def _check_same_champion(report: EvaluationReport, registry: Registry) -> None:
    """Compare number and checkpoint: a model that was deleted and made again has the same numbers."""
    measured = None if report.champion is None else (report.champion.version, report.champion.checkpoint_digest)
    version = registry.version_at(CHAMPION)
    current = None if version is None else (str(version.version), VersionTags.from_mlflow(version.tags).checkpoint_digest)
    if measured is not None and current is not None and None in (measured[1], current[1]):
        measured, current = (measured[0], None), (current[0], None)  # a report of an earlier release, or a version without a checkpoint
    if measured != current:
        same_number = measured is not None and current is not None and measured[0] == current[0]
        was, now = (_describe_champion(champion, with_checkpoint=same_number) for champion in (measured, current))
        raise TemporaryFailure(
            f"the champion was {was} when this was evaluated and is {now} at the gate",
            hint="run it again: finished measurements are reused (gate.no_worse_than_champion needs evaluation.champion)",
        )


def _describe_champion(champion: tuple[str, str | None] | None, *, with_checkpoint: bool) -> str:
    if champion is None:
        return "none"
    return f"version {champion[0]}" + (f" of checkpoint {(champion[1] or '')[:12]}" if with_checkpoint else "")


def decide(report: EvaluationReport, config: GateConfig) -> GateDecision:
    """Compare the metrics of `report` with the bounds and the champion's.

    Raises:
        BadInput: if a bound names a metric that was not measured.
    """
    failures: list[str] = []
    notes: list[str] = []
    for check in check_bounds(report, config):
        (notes if check.holds else failures).append(check.reason)
    champion = report.champion
    compared = config.no_worse_than_champion or config.better_than_champion
    if compared and champion is not None and not champion.is_challenger:
        holds, reason = _compare(champion, report, config)
        (notes if holds else failures).append(reason)
    return GateDecision(
        decision="fail" if failures else "pass",
        reasons=failures or notes or [_without_conditions(champion, compared=compared)],
        checkpoint_digest=report.checkpoint_digest,
        champion_version=champion.version if champion else None,
    )


def _without_conditions(champion: ChampionScores | None, *, compared: bool) -> str:
    if champion is None or not compared:
        return "no bound is configured and there is no champion to compare with"
    return f"no bound is configured and these weights are champion version {champion.version}"


def short_reason(decision: GateDecision) -> str:
    """Return the reasons of a failure, or the first condition that holds and how many more do."""
    first, *more = decision.reasons
    if decision.decision == "fail":
        return "; ".join(decision.reasons)
    return first if not more else f"{first}; {len(more)} more condition{'s hold' if len(more) > 1 else ' holds'}"


def _compare(champion: ChampionScores, report: EvaluationReport, config: GateConfig) -> tuple[bool, str]:
    """Return whether the headline passes against the champion's, and the sentence about it. Smaller is better."""
    drawn = "" if champion.sampling is None else f" drawn with {champion.sampling}"
    name, key = f"champion version {champion.version}{drawn}", report.headline
    if champion.problem is not None:
        return False, f"{name} {champion.problem}, so it cannot be shown that this one is no worse"
    if key not in champion.metrics:
        return False, f"{name} has no {key}, so it cannot be shown that this one is no worse"
    challenger_value, champion_value = report.metrics[key], champion.metrics[key]
    allowed = champion_value * (1 + config.tolerance)
    chance = NORMAL_QUANTILE * math.hypot(_std(report.intervals, key), _std(champion.intervals, key) * (1 + config.tolerance))
    reason = f"{key} is {challenger_value:.4g}, {name} has {champion_value:.4g} (a difference of {chance:.2g} can be chance)"
    if config.better_than_champion:
        better = challenger_value < champion_value - chance
        return better, reason if better else f"{reason}: not better"
    worse = challenger_value > allowed + chance
    return not worse, f"{reason}: worse" if worse else reason


def _std(intervals: Mapping[str, MetricInterval], key: str) -> float:
    return intervals[key].std if key in intervals else 0.0


def _tags(decision: GateDecision, report: EvaluationReport) -> dict[str, str]:
    champion = report.champion
    return {
        TAG_GATE: decision.decision,
        TAG_GATE_REASONS: "; ".join(decision.reasons),
        "gate.page": decision.page_uri or "",
        "protocol.digest": report.protocol_digest,
        "protocol.name": report.protocol.name,
        "champion.version": decision.champion_version or "none",
        **{f"challenger.{key}": f"{value:.8g}" for key, value in report.metrics.items()},
        **({} if champion is None else {f"champion.{key}": f"{value:.8g}" for key, value in champion.metrics.items()}),
    }
