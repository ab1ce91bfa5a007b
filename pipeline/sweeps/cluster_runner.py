"""Runs the trials of a sweep on Kubeflow Pipelines, several at once.

An identical submission is one run, so that a sweep that was killed finds its runs again; a run that failed is resumed.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from components.errors import CelebditError, GateFailed, TemporaryFailure
from components.manifests import EvaluationReport
from pipeline.compile import CompileOptions
from pipeline.config import RunConfig
from pipeline.follow import ENDED, failure_of, steps_of
from pipeline.kubeflow import Kubeflow
from pipeline.submit import resume, submit
from pipeline.sweeps.coordinator import TrialOutcome
from pipeline.sweeps.records import Finished, Piece

_MEASURED_STEPS = ("train", "evaluate")
_POLL_S = 10.0
_SUCCEEDED = "SUCCEEDED"


@dataclass
class ClusterRunner:
    """The runs of one sweep on a server."""

    kubeflow: Kubeflow
    options: CompileOptions
    experiment: str
    parallel: int
    find_report: Callable[[RunConfig], EvaluationReport | None]
    note: Callable[[str], None] = lambda text: None
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.time
    _runs: dict[Piece, tuple[str, RunConfig]] = field(default_factory=dict)

    @property
    def free(self) -> int:
        return self.parallel - len(self._runs)

    def start(self, piece: Piece, config: RunConfig) -> str:
        run_id = self._submit(config, replace(self.options, last_step="evaluate"))
        self._runs[piece] = (run_id, config)
        return run_id

    def wait(self) -> TrialOutcome | None:
        for piece, (run_id, config) in list(self._runs.items()):
            run = self.kubeflow.run(run_id)
            if str(run.state) in ENDED:
                del self._runs[piece]
                return self._outcome(piece, run, config)
        self.sleep(_POLL_S)
        return None

    def finish(self, trial: int, config: RunConfig) -> Finished:
        run_id = self._submit(config, self.options)
        while str((run := self.kubeflow.run(run_id)).state) not in ENDED:
            self.sleep(_POLL_S)
        failure = failure_of(run)
        if failure is not None and not isinstance(failure, GateFailed):
            raise failure
        report = self.find_report(config)
        return Finished(
            at_s=self.clock(),
            trial=trial,
            run_id=run_id,
            run_key=None if report is None else report.run_key,
            gate="pass" if failure is None else "fail",
            reasons=(f"see {self.kubeflow.run_url(run_id)}",),
            metric=None if report is None else report.headline,
            value=None if report is None else report.metrics[report.headline],
            std=None if report is None else report.metrics.get(f"{report.headline}_std"),
            noise=None if report is None else report.metrics.get(f"{report.headline}_of_noise"),
            device_s=device_s(run, config),
            url=self.kubeflow.run_url(run_id),
        )

    def _submit(self, config: RunConfig, options: CompileOptions) -> str:
        """Start the run of a configuration, find the one that there is, or resume it if it failed; return its id."""
        submission = submit(config, options, self.kubeflow, experiment=self.experiment)
        if not submission.is_new and submission.state in ENDED and submission.state != _SUCCEEDED:
            submission = resume(submission.run_id, self.kubeflow)
        self.note(f"run {submission.url}")
        return submission.run_id

    def _outcome(self, piece: Piece, run: Any, config: RunConfig) -> TrialOutcome:
        report: EvaluationReport | None = None
        failure: CelebditError | None = None
        if str(run.state) == _SUCCEEDED:
            report = self.find_report(config)
            if report is None:
                failure = TemporaryFailure(f"run {run.display_name} succeeded, but its evaluation is not in this store")
        else:
            failure = _failure(run)
        return TrialOutcome(piece, str(run.run_id), report, failure, device_s(run, config))


def _failure(run: Any) -> CelebditError:
    failure = failure_of(run)
    assert failure is not None, "only a run that registered a model has none"
    return failure


def device_s(run: Any, config: RunConfig) -> float:
    """Return the device seconds of a run, from the start to the end of its train and evaluate pods, all processes together."""
    tasks = [task for step, task in steps_of(run).items() if step in _MEASURED_STEPS]
    lengths = [(task.end_time - (task.start_time or task.create_time)).total_seconds() for task in tasks if task.end_time is not None]
    return sum(max(0.0, length) for length in lengths) * config.resources.num_ranks
