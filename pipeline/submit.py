"""Submit, follow, resume and schedule runs on Kubeflow Pipelines.

Promises: identical submissions are one run, even if a response was lost; finished work is not repeated, because every step reuses its own;
the error of a pipeline has the kind of the error of its failed step. Requests to the server are made in `kubeflow/`.
"""

import re
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from components.errors import BadInput, CelebditError, GateFailed, Interrupted, TemporaryFailure, error_for_exit_code
from components.ingest.sources.open_source import kind_of
from components.runtime.events import Event
from pipeline.compile import CompileOptions, compile_pipeline
from pipeline.config import RunConfig
from pipeline.kubeflow import Kubeflow, Version
from pipeline.steps import step_names

ENDED = ("SUCCEEDED", "SKIPPED", "FAILED", "CANCELED")
_END_EVENTS = {"FAILED": "failed", "CANCELED": "failed", "SUCCEEDED": "finished"}
_POLL_S = 5.0
_PATIENCE_S = 900.0


@dataclass(frozen=True)
class Submission:
    """A run on the server."""

    run_id: str
    name: str
    url: str
    state: str
    is_new: bool
    version: str


@dataclass(frozen=True)
class Timing:
    """When a schedule starts its runs: a cron expression, or an interval in seconds."""

    cron: str | None = None
    every_s: int | None = None

    @property
    def name(self) -> str:
        if self.cron is None:
            return f"every-{self.every_s}s"
        return "cron-" + re.sub(r"[^0-9A-Za-z]+", "-", self.cron.replace("*", "x")).strip("-").lower()


def submit(
    config: RunConfig,
    options: CompileOptions,
    kubeflow: Kubeflow,
    *,
    experiment: str,
    again: bool = False,
    clock: Callable[[], float] = time.time,
) -> Submission:
    """Upload the pipeline and start its run, unless the server has them already; with `again` always start a run."""
    require_reachable_data(config)
    version, digest = _upload(config, options, kubeflow)
    name = f"{options.preset}-{digest[:12]}" + (f"-{clock():.0f}" if again else "")
    experiment_id = kubeflow.experiment(experiment)
    existing = kubeflow.find_runs(name, experiment_id)
    run = existing[0] if existing else kubeflow.start_run(name, experiment_id, version)
    return Submission(
        run_id=str(run.run_id),
        name=name,
        url=kubeflow.run_url(str(run.run_id)),
        state=str(run.state or "PENDING"),
        is_new=not existing,
        version=version_name(digest),
    )


def schedule(config: RunConfig, options: CompileOptions, kubeflow: Kubeflow, *, experiment: str, timing: Timing) -> tuple[Any, bool]:
    """Create a recurring run of the pipeline; returns it and whether it is new."""
    require_reachable_data(config)
    version, digest = _upload(config, options, kubeflow)
    name = f"{options.preset}-{digest[:12]}-{timing.name}"
    return kubeflow.schedule(name, kubeflow.experiment(experiment), version, cron=timing.cron, every_s=timing.every_s)


def unschedule(preset: str, kubeflow: Kubeflow, *, experiment: str, timing: Timing) -> list[str]:
    """Delete the schedules of `preset` with this timing, of any configuration, and return their names; their runs are kept.

    Raises:
        BadInput: if there is no such schedule.
    """
    experiment_id = kubeflow.find_experiment(experiment)
    pattern = re.compile(rf"{re.escape(preset)}-[0-9a-f]{{12}}-{re.escape(timing.name)}")
    entries = kubeflow.schedules(experiment_id) if experiment_id is not None else []
    schedules = {str(entry.display_name): str(entry.recurring_run_id) for entry in entries}
    matching = sorted(name for name in schedules if pattern.fullmatch(name))
    if not matching:
        raise BadInput(
            f"experiment {experiment} has no schedule of {preset} with this timing",
            hint=f"it has: {', '.join(sorted(schedules)) or 'none'}",
        )
    for name in matching:
        kubeflow.unschedule(schedules[name])
    return matching


def resume(run_id: str, kubeflow: Kubeflow, *, clock: Callable[[], float] = time.time) -> Submission:
    """Retry the failed steps of a run, or start a new run of the same version if the server cannot retry this one.

    Raises:
        BadInput: if there is nothing to resume.
    """
    run = kubeflow.run(run_id)
    state, name = str(run.state), str(run.display_name)
    if state == "SUCCEEDED":
        raise BadInput(f"run {name} has succeeded, there is nothing to resume", hint="start another run with: celebdit submit --again")
    if state not in ENDED:
        return Submission(run_id, name, kubeflow.run_url(run_id), state, is_new=False, version=_version_of(run).version_id)
    version = _version_of(run)
    try:
        kubeflow.retry_run(run_id)
    except TemporaryFailure:
        if str(kubeflow.run(run_id).state) in ENDED:  # otherwise the response was lost and the run continues
            raise
    except BadInput:
        # The workflow was deleted, or this server cannot retry it: a new run of the same version reuses finished steps and the checkpoint.
        if not version.version_id:
            raise
        parameters = (run.runtime_config.parameters or {}) if run.runtime_config else {}
        new_run = kubeflow.start_run(f"{name}-resumed-{clock():.0f}", str(run.experiment_id), version, parameters)
        return Submission(
            str(new_run.run_id),
            str(new_run.display_name),
            kubeflow.run_url(str(new_run.run_id)),
            str(new_run.state or "PENDING"),
            is_new=True,
            version=version.version_id,
        )
    return Submission(run_id, name, kubeflow.run_url(run_id), "RUNNING", is_new=False, version=version.version_id)


def follow(
    run_id: str,
    kubeflow: Kubeflow,
    *,
    on_event: Callable[[Event], None],
    resumed: bool = False,
    poll_s: float = _POLL_S,
    patience_s: float = _PATIENCE_S,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Any:
    """Wait for the end of a run, report the progress of its steps, and return it.

    Raises:
        TemporaryFailure: if the server was unavailable for longer than `patience_s`. The run continues.
    """
    reported: dict[str, str] = {}
    answered_s = clock()
    may_be_stale = resumed  # right after a retry the server may still show the previous end
    while True:
        try:
            run = kubeflow.run_now(run_id)
        except TemporaryFailure as error:
            if clock() - answered_s > patience_s:
                raise TemporaryFailure(
                    f"{error.message} (for {patience_s:.0f} s)", hint=f"the run continues; see its state with: celebdit runs {run_id}"
                ) from error
            sleep(poll_s)
            continue
        answered_s = clock()
        for event in step_events(run, reported):
            on_event(event)
        if str(run.state) in ENDED and not may_be_stale:
            return run
        may_be_stale = False
        sleep(poll_s)


def step_events(run: Any, reported: dict[str, str]) -> list[Event]:
    """Return the changes of the steps of `run` since `reported` (step -> state) as events, and update `reported`."""
    events = []
    for step, task in sorted(steps_of(run).items(), key=lambda item: _epoch_s(item[1].start_time or item[1].create_time)):
        state = str(task.state)
        if reported.get(step) == state or state in ("PENDING", "SKIPPED", "RUNTIME_STATE_UNSPECIFIED"):
            continue
        if reported.get(step) is None:
            events.append(Event(step, "started", _epoch_s(task.start_time or task.create_time), {}))
        if state in _END_EVENTS:
            facts = {} if state == "SUCCEEDED" else {"message": _message(task), "exit_code": 75, "hint": None}
            events.append(Event(step, _END_EVENTS[state], _epoch_s(task.end_time), facts))  # type: ignore[arg-type]
        reported[step] = state
    return events


def steps_of(run: Any) -> dict[str, Any]:
    """Return the latest attempt of each step by name, without KFP's drivers and groups."""
    tasks: dict[str, Any] = {}
    details = run.run_details.task_details if run.run_details else None
    for task in sorted(details or [], key=lambda task: _epoch_s(task.create_time)):
        if task.display_name in step_names():
            tasks[task.display_name] = task
    return tasks


def failure_of(run: Any) -> CelebditError | None:
    """Return the error that a finished run stands for, or None if it registered a model."""
    state, steps = str(run.state), steps_of(run)
    if state == "SUCCEEDED":
        registered = steps.get("register")
        if registered is not None and str(registered.state) == "SUCCEEDED":
            return None
        return GateFailed("the gate did not pass: nothing was registered", hint="see the log of the gate step and the MLflow run")
    if state == "CANCELED":
        return Interrupted(f"run {run.display_name} was cancelled", hint=f"continue it with: celebdit resume {run.run_id}")
    failed = [(name, task) for name, task in steps.items() if str(task.state) == "FAILED"]
    name, message = (failed[0][0], _message(failed[0][1])) if failed else ("the pipeline", _status_message(run.error) or "failed")
    code = re.search(r"exit (?:code|status):? (\d+)", message)
    hint = f"see the log on the run's page; after correcting the cause: celebdit resume {run.run_id}"
    if code and int(code.group(1)) in (1, 2, 3, 75):
        return error_for_exit_code(int(code.group(1)), f"{name}: {message}", hint=hint)
    return TemporaryFailure(f"{name}: {message}", hint=hint)


def require_reachable_data(config: RunConfig) -> None:
    """Check that data and weights are not on this machine, where no pod can read them.

    Raises:
        BadInput: with the name of the field.
    """
    weights = config.evaluation.weights
    local = {
        "data.source": config.data.source if kind_of(config.data.source).on_this_machine else None,
        "evaluation.weights": weights if weights is not None and "://" not in weights else None,
    }
    for field, value in local.items():
        if value is not None:
            raise BadInput(
                f"{field} {value} is on this machine, where the cluster cannot read it", hint=f"upload it to S3 and set {field}=s3://..."
            )


def version_name(digest: str) -> str:
    """Return the name of the pipeline version with these bytes."""
    return f"sha256-{digest[:32]}"


def _upload(config: RunConfig, options: CompileOptions, kubeflow: Kubeflow) -> tuple[Version, str]:
    with tempfile.TemporaryDirectory(prefix="celebdit-submit-") as folder:
        package = Path(folder) / "pipeline.yaml"
        digest = compile_pipeline(config, package, options)
        return kubeflow.version(version_name(digest), package, f"preset {options.preset}, configuration {config.digest()[:12]}"), digest


def _version_of(run: Any) -> Version:
    reference = run.pipeline_version_reference
    return Version(
        str(reference.pipeline_id or "") if reference else "", str(reference.pipeline_version_id or "") if reference else "", is_new=False
    )


def _message(task: Any) -> str:
    return _status_message(task.error) or f"ended as {task.state}"


def _status_message(status: Any) -> str:
    return " ".join(str(status.message).split())[:300] if status is not None and status.message else ""


def _epoch_s(moment: datetime | None) -> float:
    if moment is None:
        return time.time()
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
