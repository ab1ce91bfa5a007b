"""Run the pipeline for a command: start it, show it, summarise it.

Promises: text and JSON output show the same summary; an interrupted run is closed in MLflow and leaves no process behind; what a killed run
left is recovered first; a failed gate is exit code 1, not an error.
"""

import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from components.environment import RUN_ID
from components.errors import CelebditError
from components.manifests import CheckpointManifest, DatasetManifest, EvaluationReport, GateDecision, RegisteredVersion
from components.runtime.context import StepContext
from components.runtime.events import OnceFilter
from components.system.disk import RUN_FILES, require_writable
from pipeline.config import RunConfig
from pipeline.local import LocalOutcome, run_locally
from pipeline.open_runs import open_run, record_end, recover_killed_runs
from pipeline.session import SAMPLES_FILE, Session, run_folder
from pipeline.steps import LastStep
from pipeline.view import RunView

_ROOM_BYTES = 2**20
"""What the files of a run's own folder need."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DatasetSummary(_Part):
    """The dataset of a run."""

    digest: str
    num_images: int
    rejected: dict[str, int]
    uri: str


class CheckpointSummary(_Part):
    """The checkpoint that a run trained or reused."""

    digest: str
    uri: str


class Score(_Part):
    """The headline metric of the evaluation."""

    name: str
    value: float


class GateSummary(_Part):
    """The decision of the gate."""

    decision: Literal["pass", "fail"]
    reasons: list[str]


class ModelSummary(_Part):
    """The registered version."""

    name: str
    version: str
    aliases: list[str]


class MlflowSummary(_Part):
    """The MLflow run of the pipeline, and the registered version in MLflow."""

    tracking_uri: str
    run_id: str
    run_url: str
    model_uri: str | None


class RunSummary(_Part):
    """Results of a finished run; `celebdit run --json` prints it as JSON."""

    run_id: str
    config_digest: str
    run_key: str
    dataset: DatasetSummary
    training_steps: int
    checkpoint: CheckpointSummary
    score: Score
    metrics: dict[str, float]
    gate: GateSummary
    model: ModelSummary | None
    mlflow: MlflowSummary
    samples: str
    seconds: dict[str, float]
    """Duration of each step that ran."""

    @property
    def passed(self) -> bool:
        return self.gate.decision == "pass"


def execute(config: RunConfig, session: Session, view: RunView, *, preset: str, run_id: str, in_containers: bool = False) -> RunSummary:
    """Run the pipeline and return its summary.

    Raises:
        CelebditError: the error of the first step that failed.
    """
    environment = session.environment(preset=preset, run_id=run_id, on_wait=OnceFilter(view.print_waiting))
    outcome = run_pipeline(config, session, environment, view, in_containers=in_containers)
    if outcome.failure is not None:
        raise outcome.failure
    return summarise(config, outcome, session.context(environment), run_folder(session.home, run_id), run_id)


def run_pipeline(
    config: RunConfig,
    session: Session,
    environment: Mapping[str, str],
    view: RunView,
    *,
    in_containers: bool = False,
    last_step: LastStep = "register",
) -> LocalOutcome:
    """Run the pipeline with the environment of one run, and return the outcome, which may be a failure of a step."""
    run_id = environment[RUN_ID]
    context = session.context(environment)
    folder = run_folder(session.home, run_id)
    advice = "choose another folder with --home or CELEBDIT_HOME"
    require_writable(folder, advice=advice, room_bytes=_ROOM_BYTES, room_files=RUN_FILES)
    recover_killed_runs(session.home.absolute(), context, view.print_line, servers=session.servers)
    view.print_line(f"run {run_id}, log: {folder / 'log.txt'}")
    if session.services is not None:
        view.print_once(f"MLflow: {session.link(context.settings.mlflow_uri + '/')}")
    with open_run(folder, servers=session.servers, in_containers=in_containers) as mark:
        try:
            outcome = run_locally(config, folder, environment, on_event=view, in_containers=in_containers, last_step=last_step)
        except KeyboardInterrupt:
            record_end(folder, "interrupted")
            view.print_line("interrupted: closing the run")
            if _close(context, "KILLED", "interrupted"):
                mark.close()
            raise
        except CelebditError:  # before anything was started
            mark.close()
            raise
        if outcome.failure is not None:
            record_end(folder, "failed", outcome.failure.message)
        if outcome.closed or _close(context, "FAILED", str(outcome.failure or "")):
            mark.close()
    return outcome


def _close(context: StepContext, status: Literal["FAILED", "KILLED"], message: str) -> bool:
    """Set the final status of the MLflow runs of a pipeline run that could not do it, and return whether that worked; ignores Ctrl-C."""
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        from components.finalize.finalize import run  # noqa: PLC0415 - imports MLflow, which takes seconds

        run(status, message, context)
    except CelebditError:
        return False
    finally:
        signal.signal(signal.SIGINT, previous)
    return True


def summarise(config: RunConfig, outcome: LocalOutcome, context: StepContext, folder: Path, run_id: str) -> RunSummary:
    """Return what a finished run has made."""
    results = outcome.results
    report = EvaluationReport.model_validate(results["evaluate"], strict=False)
    checkpoint = CheckpointManifest.model_validate(results["train"], strict=False)
    dataset = DatasetManifest.model_validate(results["ingest"], strict=False)
    gate = GateDecision.model_validate(results["gate"], strict=False)
    version = RegisteredVersion.model_validate(results["register"], strict=False) if "register" in results else None
    samples, locate = folder / SAMPLES_FILE, context.layout.locate
    context.store.get_file(locate(report.grid_uri), samples)
    return RunSummary(
        run_id=run_id,
        config_digest=config.digest(),
        run_key=checkpoint.run_key,
        dataset=DatasetSummary(
            digest=dataset.digest, num_images=dataset.num_images, rejected=dataset.rejected, uri=str(locate(dataset.uri))
        ),
        training_steps=checkpoint.step,
        checkpoint=CheckpointSummary(digest=checkpoint.digest, uri=str(locate(checkpoint.uri))),
        score=Score(name=report.headline, value=report.metrics[report.headline]),
        metrics=report.metrics,
        gate=GateSummary(decision=gate.decision, reasons=gate.reasons),
        model=None if version is None else ModelSummary(name=version.name, version=version.version, aliases=version.aliases),
        mlflow=MlflowSummary(**results["preflight"], model_uri=None if version is None else version.model_uri),
        samples=str(samples),
        seconds=outcome.seconds,
    )
