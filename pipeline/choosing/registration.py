"""Evaluate one candidate under the full protocol, let the gate decide, and register it, by the code of the pipeline's steps.

Promises: MLflow gets a pipeline run with the same children as one whose training was finished before; it is closed with its outcome. The
champion is opened only if the key that is configured signed it, as by every other command.
"""

from dataclasses import dataclass

from components.command_settings import CommandSettings
from components.evaluate.evaluate import run as evaluate
from components.finalize.finalize import Outcome
from components.finalize.finalize import run as finalize
from components.gate.gate import run as gate
from components.manifests import EvaluationReport, GateDecision, RegisteredVersion
from components.register.register import run as register
from components.registry.client import CHAMPION, Registry
from components.runtime.context import StepContext
from components.system.work_folders import WorkFolder
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


def check_champion(settings: RunConfig, context: StepContext) -> None:
    """Verify the signature of the champion that a candidate would be compared with, if a key is configured and there is a champion.

    Raises:
        DataRefused: if the signature is missing or does not fit. BadInput: if the key cannot be used.
    """
    key = CommandSettings.from_environment().verify_key
    if key is None or not settings.evaluation.champion:
        return
    registry = Registry(context.tracking, settings.registry.model_name)
    version = registry.version_at(CHAMPION)
    if version is not None:
        registry.files_of(version, context.scratch(WorkFolder.CHAMPIONS), verify_key=key)


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
    report = evaluate(
        chosen.checkpoint,
        training.dataset,
        settings.evaluation,
        sampling,
        settings.resources,
        model_name,
        context,
        verify_key=CommandSettings.from_environment().verify_key,
    )
    decision, _ = gate(report, settings.gate, model_name, context)
    if decision.decision != "pass":
        return report, decision, None
    version = register(chosen.checkpoint, training.dataset, report, decision, sampling, settings.registry, context)
    return report, decision, version
