"""Reports a training to MLflow in the background: name, parameters, dataset, status.

Promises: training never waits for MLflow, even if it is unavailable from the start; only the launcher creates the run, so there is one.
`celebdit sync` reports later what could not be reported.
"""

import logging
import threading
from typing import TYPE_CHECKING

from components.errors import BadInput, Failure, first_line
from components.runtime.context import StepContext
from components.tracking.request_limits import limit_requests
from components.tracking.run_parameters import pipeline_parameters, run_name, training_parameters
from components.tracking.tags import TAG_LICENCE, TAG_TRAINING_STEPS
from components.train.reporting.failed_reports import describe_failure
from components.train.spec import TrainSpec

if TYPE_CHECKING:
    from components.tracking.client import Tracking

_log = logging.getLogger(__name__)
_PAUSE_S = 10.0
_JOIN_TIMEOUT_S = 30.0


class MlflowRunReporter:
    """Creates the MLflow run of a training and closes it; retries until MLflow answers."""

    def __init__(self, context: StepContext, spec: TrainSpec) -> None:
        self._context = context
        self._spec = spec
        self._run_id: str | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._retry_until_described, name="mlflow-run-reporter", daemon=True)

    def begin(self) -> None:
        """Start reporting in the background."""
        self._thread.start()

    def end(self, error: BaseException | None) -> None:
        """Report the outcome; waits for MLflow no longer than its time-outs."""
        self._stop.set()
        self._thread.join(_JOIN_TIMEOUT_S)
        if self._thread.is_alive():
            self._note_pending_sync("MLflow does not answer")
            return
        try:
            if self._run_id is None:
                self._describe()
            assert self._run_id is not None, "it has just been described"
            if error is None:
                self._context.tracking.set_status(self._run_id, "FINISHED")
            else:
                self._context.tracking.close(self._run_id, error)
        except Exception as outage:  # no exception of MLflow's client may fail a training that succeeded
            failure = Failure.of(outage)
            refused = isinstance(outage, BadInput) and failure.hint is not None
            self._note_pending_sync(f"{failure.message}; {failure.hint}" if refused else failure.message)

    def _note_pending_sync(self, reason: str) -> None:
        self._context.events.note(f"{reason}; run `celebdit sync {self._spec.run_key}` when MLflow accepts it")

    def _describe(self) -> None:
        tracking, spec = self._context.tracking, self._spec
        run_id = describe_run(tracking, spec)
        describe_parent(tracking, spec, run_id)
        self._run_id = run_id

    def _retry_until_described(self) -> None:
        limit_requests(timeout_s=10, max_retries=1)
        attempt = 0
        while not self._stop.is_set():
            attempt += 1
            try:
                self._describe()
                return
            except Exception as error:
                if attempt == 1:
                    meanwhile = "training continues without it"
                    self._context.events.note(describe_failure(error, self._spec.run_key, meanwhile=meanwhile))
                text = "describing the run in MLflow failed, attempt %d: %s; next attempt in %.0f s, until training ends"
                _log.warning(text, attempt, first_line(error), _PAUSE_S, extra={"topic": "describing the run", "is_noted": True})
            self._stop.wait(_PAUSE_S)


def describe_run(tracking: "Tracking", spec: TrainSpec) -> str:
    """Describe the training of `spec` in MLflow, mark it as running, and return the id of its run; idempotent."""
    run_id = str(tracking.step_run("train", run_key=spec.run_key, name=f"train-{spec.run_key}").info.run_id)
    tracking.set_status(run_id, "RUNNING")
    # The length of a run is no parameter of it: a run that is continued gets another one, and MLflow keeps the first value of a parameter.
    tags = {"attempt": spec.attempt, TAG_LICENCE: spec.dataset.licence, TAG_TRAINING_STEPS: str(spec.training.total_steps)}
    tracking.set_tags(run_id, tags)
    tracking.log_params(run_id, training_parameters(spec, spec.dataset))
    tracking.log_text(run_id, spec.model_dump_json(indent=2), "config/train.json")
    tracking.log_dataset(run_id, spec.dataset, context="training")
    return run_id


def describe_parent(tracking: "Tracking", spec: TrainSpec, training_run_id: str) -> None:
    """Give the run of this pipeline its name and the parameters of the training that it begins; idempotent."""
    from components.tracking.pipeline_run import Facts, describe_pipeline_run, training_tags  # noqa: PLC0415 - imports MLflow

    preset = tracking.settings.preset
    trained = tracking.client.get_run(training_run_id)
    describe_pipeline_run(
        tracking,
        Facts(
            tags=training_tags(tracking, trained, steps=spec.training.total_steps, is_training=True),
            name=run_name(preset, spec, spec.dataset),
            parameters=pipeline_parameters(spec, spec.dataset, spec.sampling, spec.resources, preset),
            dataset=spec.dataset,
        ),
    )
