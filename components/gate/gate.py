"""The gate step: pass or fail, and every reason for it.

Promises: the decision is a pure function of the report (which brings the champion's numbers under the same protocol) and the bounds; what
chance alone can explain does not decide against a challenger; a champion that could not be measured is never beaten. Nothing is registered
or promoted here.
"""

import math
from collections.abc import Mapping

from components.errors import TemporaryFailure
from components.gate.bounds import check_bounds
from components.gate.config import GateConfig
from components.gate.page import decision_page
from components.manifests import NORMAL_QUANTILE, ChampionScores, EvaluationReport, GateDecision, MetricInterval
from components.registry.client import Registry
from components.registry.promotions import CHAMPION
from components.runtime.context import StepContext
from components.storage import StoreUri

PAGE_FILE = "gate.html"


def run(report: EvaluationReport, config: GateConfig, model_name: str, context: StepContext) -> tuple[GateDecision, str]:
    """Decide on the checkpoint of `report`, show the decision in MLflow, and return it with its page.

    Raises:
        TemporaryFailure: if the champion changed since the report was made.
    """
    registry = Registry(context.tracking, model_name)
    if config.no_worse_than_champion or config.better_than_champion:
        _check_same_champion(report, registry.aliases().get(CHAMPION))
    decision = decide(report, config)
    page = decision_page(decision, report, check_bounds(report, config), context.store)
    uri = StoreUri.parse(report.uri) / f"gate-{context.settings.run_id}.html"
    context.store.put_bytes(uri, page.encode())
    decision = decision.model_copy(update={"page_uri": str(uri)})
    tracking = context.tracking
    with tracking.running(tracking.step_run("gate")) as run_id:
        tracking.tag(run_id, _tags(decision, report))
        tracking.text(run_id, decision.model_dump_json(indent=2), "gate.json")
        tracking.text(run_id, page, PAGE_FILE)
    context.events.note(f"{decision.decision} ({'; '.join(decision.reasons)})")
    return decision, page


def _check_same_champion(report: EvaluationReport, present: str | None) -> None:
    measured = None if report.champion is None else report.champion.version
    if measured != present:
        was, now = (f"version {version}" if version else "none" for version in (measured, present))
        raise TemporaryFailure(
            f"the champion was {was} when this was evaluated and is {now} at the gate",
            hint="run it again: what was measured is kept (gate.no_worse_than_champion needs evaluation.champion)",
        )


def decide(report: EvaluationReport, config: GateConfig) -> GateDecision:
    """Hold the numbers of `report` against the bounds and the champion.

    Raises:
        BadInput: if a bound names a metric that was not measured.
    """
    failures: list[str] = []
    notes: list[str] = []
    for check in check_bounds(report, config):
        (notes if check.holds else failures).append(check.reason)
    champion = report.champion
    asked = config.no_worse_than_champion or config.better_than_champion
    if asked and champion is not None and not champion.is_challenger:
        good, said = _against(champion, report, config)
        (notes if good else failures).append(said)
    return GateDecision(
        decision="fail" if failures else "pass",
        reasons=failures or notes or [_nothing_to_say(champion, asked=asked)],
        checkpoint_digest=report.checkpoint_digest,
        champion_version=champion.version if champion else None,
    )


def _nothing_to_say(champion: ChampionScores | None, *, asked: bool) -> str:
    if champion is None or not asked:
        return "no bound is configured and there is no champion to compare with"
    return f"no bound is configured and these weights are champion version {champion.version}"


def _against(champion: ChampionScores, report: EvaluationReport, config: GateConfig) -> tuple[bool, str]:
    """Return whether the headline stands up to the champion's, and the sentence about it. Smaller is better."""
    name, key = f"champion version {champion.version}", report.headline
    if champion.problem is not None:
        return False, f"{name} {champion.problem}, so nothing shows that this one is no worse"
    if key not in champion.metrics:
        return False, f"{name} has no {key}, so nothing shows that this one is no worse"
    mine, theirs = report.metrics[key], champion.metrics[key]
    allowed = theirs * (1 + config.tolerance)
    chance = NORMAL_QUANTILE * math.hypot(_std(report.intervals, key), _std(champion.intervals, key) * (1 + config.tolerance))
    said = f"{key} is {mine:.4g}, {name} has {theirs:.4g} (a difference of {chance:.2g} can be chance)"
    if config.better_than_champion:
        better = mine < theirs - chance
        return better, said if better else f"{said}: not better"
    worse = mine > allowed + chance
    return not worse, f"{said}: worse" if worse else said


def _std(intervals: Mapping[str, MetricInterval], key: str) -> float:
    return intervals[key].std if key in intervals else 0.0


def _tags(decision: GateDecision, report: EvaluationReport) -> dict[str, str]:
    champion = report.champion
    return {
        "gate.decision": decision.decision,
        "gate.reasons": "; ".join(decision.reasons),
        "gate.page": decision.page_uri or "",
        "protocol.digest": report.protocol_digest,
        "protocol.name": report.protocol.name,
        "champion.version": decision.champion_version or "none",
        **{f"challenger.{key}": f"{value:.8g}" for key, value in report.metrics.items()},
        **({} if champion is None else {f"champion.{key}": f"{value:.8g}" for key, value in champion.metrics.items()}),
    }
