"""Runs the trials of a sweep on this machine, one at a time: a run has all devices."""

import time
from dataclasses import dataclass, field

from components.environment import EXPERIMENT
from components.errors import CelebditError
from components.manifests import EvaluationReport
from components.runtime.events import OnceFilter
from pipeline.config import RunConfig
from pipeline.local import LocalOutcome
from pipeline.runs import RunSummary, run_pipeline, summarise
from pipeline.session import Session, kept_environment, new_run_id, run_folder
from pipeline.steps import LastStep
from pipeline.sweeps.coordinator import TrialOutcome
from pipeline.sweeps.records import Finished, Piece
from pipeline.view import RunView

_MEASURED_STEPS = ("train", "evaluate")


def runs_experiment(name: str) -> str:
    """Return the MLflow experiment of the pipeline runs of the sweep `name`."""
    return f"sweep/{name}/runs"


@dataclass
class LocalRunner:
    """The local runner of one sweep."""

    name: str
    session: Session
    view: RunView
    _next: tuple[Piece, RunConfig, str] | None = None
    _on_wait: OnceFilter = field(init=False)

    def __post_init__(self) -> None:
        self._on_wait = OnceFilter(self.view.print_waiting)

    @property
    def free(self) -> int:
        return 0 if self._next else 1

    def start(self, piece: Piece, config: RunConfig) -> str:
        run_id = new_run_id(f"{self.name[:16]}-{piece.trial}-{piece.seed}-{piece.steps}")
        self._next = (piece, config, run_id)
        return run_id

    def wait(self) -> TrialOutcome | None:
        assert self._next is not None
        (piece, config, run_id), self._next = self._next, None
        try:
            outcome = self._run(config, run_id, last_step="evaluate")
        except CelebditError as error:
            return TrialOutcome(piece, run_id, None, error, 0.0)
        results = outcome.results.get("evaluate") if outcome.failure is None else None
        report = None if results is None else EvaluationReport.model_validate(results, strict=False)
        return TrialOutcome(piece, run_id, report, outcome.failure, device_s(outcome, config))

    def finish(self, trial: int, config: RunConfig) -> Finished:
        run_id = new_run_id(f"{self.name}-final")
        outcome = self._run(config, run_id, last_step="register")
        if outcome.failure is not None:
            raise outcome.failure
        with kept_environment():
            context = self.session.context(self._environment(run_id))
            summary = summarise(config, outcome, context, run_folder(self.session.home, run_id), run_id)
        return finished_of(trial, summary, at_s=time.time(), device_s=device_s(outcome, config))

    def _run(self, config: RunConfig, run_id: str, *, last_step: LastStep) -> LocalOutcome:
        with kept_environment():  # that of the sweep's own clients
            return run_pipeline(config, self.session, self._environment(run_id), self.view, last_step=last_step)

    def _environment(self, run_id: str) -> dict[str, str]:
        environment = self.session.environment(preset=self.name, run_id=run_id, on_wait=self._on_wait)
        return {**environment, EXPERIMENT: runs_experiment(self.name)}


def device_s(outcome: LocalOutcome, config: RunConfig) -> float:
    """Return the device seconds of a run: of train and evaluate, all processes together."""
    return sum(outcome.seconds.get(step, 0.0) for step in _MEASURED_STEPS) * config.resources.num_ranks


def finished_of(trial: int, summary: RunSummary, *, at_s: float, device_s: float) -> Finished:
    """Return the record of a final run."""
    return Finished(
        at_s=at_s,
        trial=trial,
        run_id=summary.run_id,
        run_key=summary.run_key,
        gate=summary.gate.decision,
        reasons=tuple(summary.gate.reasons),
        version=None if summary.model is None else summary.model.version,
        model=None if summary.model is None else summary.model.name,
        metric=summary.score.name,
        value=summary.score.value,
        std=summary.metrics.get(f"{summary.score.name}_std"),
        noise=summary.metrics.get(f"{summary.score.name}_of_noise"),
        device_s=device_s,
        url=summary.mlflow.run_url,
    )
