"""The gate step: pass or fail, and every reason for it.

Promises: the decision is a pure function of the report, the bounds and the champion's numbers; a champion measured under another protocol
is not compared but named. Nothing is registered or promoted here.
"""

import operator
from dataclasses import dataclass

from components.context import StepContext
from components.errors import BadInput
from components.gate.config import GateConfig
from components.manifests import EvaluationReport, GateDecision
from components.registry import CHAMPION, Registry


def run(report: EvaluationReport, config: GateConfig, model_name: str, context: StepContext) -> GateDecision:
    """Decide on the checkpoint of `report` and show the decision in MLflow."""
    champion = champion_score(Registry(context.tracking, model_name), report)
    decision = decide(report, config, champion)
    tracking = context.tracking
    with tracking.running(tracking.step_run("gate")) as run_id:
        tracking.tag(run_id, {"gate.decision": decision.decision, "gate.reasons": "; ".join(decision.reasons)})
        tracking.text(run_id, decision.model_dump_json(indent=2), "gate.json")
    context.events.note(f"{decision.decision} ({'; '.join(decision.reasons)})")
    return decision


@dataclass(frozen=True)
class Champion:
    """The champion, with its headline number if that was made under the same protocol."""

    version: str
    checkpoint_digest: str
    score: float | None


def champion_score(registry: Registry, report: EvaluationReport) -> Champion | None:
    """Return the champion's number for the headline of `report`, or None if there is no champion."""
    number = registry.aliases().get(CHAMPION)
    if number is None:
        return None
    tags = registry.version(number).tags
    comparable = tags.get("protocol.digest") == report.protocol_digest
    return Champion(
        number, tags.get("checkpoint.digest", ""), float(tags[report.headline]) if comparable and report.headline in tags else None
    )


def decide(report: EvaluationReport, config: GateConfig, champion: Champion | None) -> GateDecision:
    """Hold the numbers of `report` against the bounds and the champion.

    Raises:
        BadInput: if a bound names a metric that was not measured.
    """
    failures: list[str] = []
    notes: list[str] = []
    for bounds, word, fails in ((config.at_most, "at most", operator.gt), (config.at_least, "at least", operator.lt)):
        for key, bound in bounds.items():
            if key not in report.metrics:
                raise BadInput(f"gate bound on {key}, which was not measured", hint=f"measured: {', '.join(sorted(report.metrics))}")
            value = report.metrics[key]
            (failures if fails(value, bound) else notes).append(f"{key} is {value:.4g}, {word} {bound:.4g} is asked")
    if config.no_worse_than_champion and champion is not None and champion.checkpoint_digest != report.checkpoint_digest:
        _compare(report, config, champion, failures, notes)
    return GateDecision(
        decision="fail" if failures else "pass",
        reasons=failures or notes or ["no bound is configured and there is no champion to compare with"],
        checkpoint_digest=report.checkpoint_digest,
        champion_version=champion.version if champion else None,
    )


def _compare(report: EvaluationReport, config: GateConfig, champion: Champion, failures: list[str], notes: list[str]) -> None:
    value = report.metrics[report.headline]
    if champion.score is None:
        notes.append(f"champion version {champion.version} was measured under another protocol and is not compared")
    elif value > champion.score * (1 + config.tolerance):
        failures.append(f"{report.headline} is {value:.4g}, worse than champion version {champion.version} with {champion.score:.4g}")
    else:
        notes.append(f"{report.headline} is {value:.4g}, champion version {champion.version} has {champion.score:.4g}")
