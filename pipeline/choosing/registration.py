"""Evaluate one candidate under the full protocol, let the gate decide, and register it, by the code of the pipeline's steps.

Promises: MLflow gets a pipeline run with the same children as one whose training was finished before; it is closed with its outcome.
"""

from dataclasses import dataclass

from components.evaluate.evaluate import run as evaluate
from components.finalize.finalize import Outcome
from components.finalize.finalize import run as finalize
from components.gate.gate import run as gate
from components.manifests import EvaluationReport, GateDecision, RegisteredVersion
from components.register.register import run as register
from components.runtime.context import StepContext
from components.train.spec import TrainSpec
from pipeline.choosing.scores import Measured
from pipeline.config import RunConfig


@dataclass(frozen=True)
class Registration:
    """What the full evaluation found, what the gate decided, and the version, if it passed."""

    report: EvaluationReport
    gate: GateDecision
    version: RegisteredVersion | None
    url: str


def register_candidate(chosen: Measured, training: TrainSpec, settings: RunConfig, context: StepContext) -> Registration:
    """Evaluate, judge and register `chosen` as a run of the pipeline would.

    Raises:
        DataRefused, TemporaryFailure: as the steps do; the run is closed in MLflow.
    """
    run = context.tracking.pipeline_run()
    context.tracking.set_status(run.info.run_id, "RUNNING")
    outcome: Outcome = "FAILED"
    message = "stopped"
    try:
        report, decision, version = _run_steps(chosen, training, settings, context)
        outcome, message = "FINISHED", ""
    except KeyboardInterrupt:
        outcome = "KILLED"
        raise
    except Exception as error:
        message = str(error)
        raise
    finally:
        finalize(outcome, message, context)
    return Registration(report, decision, version, context.tracking.run_url(run.info.run_id))


def _run_steps(
    chosen: Measured, training: TrainSpec, settings: RunConfig, context: StepContext
) -> tuple[EvaluationReport, GateDecision, RegisteredVersion | None]:
    sampling = settings.sampling.model_copy(update={"ema": chosen.candidate.ema.setting})
    model_name = settings.registry.model_name
    report = evaluate(chosen.checkpoint, training.dataset, settings.evaluation, sampling, settings.resources, model_name, context)
    decision, _ = gate(report, settings.gate, model_name, context)
    if decision.decision != "pass":
        return report, decision, None
    version = register(chosen.checkpoint, training.dataset, report, decision, sampling, settings.registry, context)
    return report, decision, version
