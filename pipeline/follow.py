"""Follow a run on Kubeflow Pipelines: the progress of its steps, its end, and the error that it stands for.

Promises: the error of a pipeline has the kind of the error of its failed step; a server that is unavailable for a while does not end the
wait. Requests to the server are made in `kubeflow/`.
"""

import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from components.errors import CelebditError, GateFailed, Interrupted, TemporaryFailure, error_for_exit_code
from components.runtime.events import Event
from pipeline.kubeflow import Kubeflow
from pipeline.steps import step_names

ENDED = ("SUCCEEDED", "SKIPPED", "FAILED", "CANCELED")
_END_EVENTS = {"FAILED": "failed", "CANCELED": "failed", "SUCCEEDED": "finished"}
_POLL_S = 5.0
_PATIENCE_S = 900.0


def plain_command(words: str) -> str:
    """Return the command that `celebdit WORDS` is, without the options of a command line."""
    return f"celebdit {words}"


def follow(
    run_id: str,
    kubeflow: Kubeflow,
    *,
    on_event: Callable[[Event], None],
    on_poll: Callable[[], None] = lambda: None,
    command: Callable[[str], str] = plain_command,
    resumed: bool = False,
    poll_s: float = _POLL_S,
    patience_s: float = _PATIENCE_S,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Any:
    """Wait for the end of a run, report the progress of its steps, and return it; `on_poll` is called while it runs.

    `command` returns the command for the user that `celebdit WORDS` is.

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
                    f"{error.message} (for {patience_s:.0f} s)",
                    hint=f"the run continues; see its state with: {command(f'runs {run_id}')}",
                ) from error
            sleep(poll_s)
            continue
        answered_s = clock()
        for event in step_events(run, reported):
            on_event(event)
        if str(run.state) in ENDED and not may_be_stale:
            return run
        may_be_stale = False
        on_poll()
        sleep(poll_s)


def step_events(run: Any, reported: dict[str, str]) -> list[Event]:
    """Return the changes of the steps of `run` since `reported` (step -> state) as events, and update `reported`."""
    events = []
    for step, task in sorted(steps_of(run).items(), key=lambda item: _epoch_s(item[1].start_time or item[1].create_time)):
        state = str(task.state)
        if reported.get(step) == state or state in ("PENDING", "SKIPPED", "RUNTIME_STATE_UNSPECIFIED"):
            continue
        if reported.get(step) in (None, *_END_EVENTS):  # the first attempt, or another one after the end of the last
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


def failure_of(run: Any, *, command: Callable[[str], str] = plain_command) -> CelebditError | None:
    """Return the error that a finished run stands for, or None if it registered a model; `command` as in `follow`."""
    resume = command(f"resume {run.run_id}")
    state, steps = str(run.state), steps_of(run)
    if state == "SUCCEEDED":
        registered = steps.get("register")
        if registered is not None and str(registered.state) == "SUCCEEDED":
            return None
        return GateFailed("the gate did not pass: nothing was registered", hint="see the log of the gate step and the MLflow run")
    if state == "CANCELED":
        return Interrupted(f"run {run.display_name} was cancelled", hint=f"continue it with: {resume}")
    failed = [(name, task) for name, task in steps.items() if str(task.state) == "FAILED"]
    name, message = (failed[0][0], _message(failed[0][1])) if failed else ("the pipeline", _status_message(run.error) or "failed")
    code = re.search(r"exit (?:code|status):? (\d+)", message)
    hint = f"see the log on the run's page; after correcting the cause: {resume}"
    if code and int(code.group(1)) in (1, 2, 3, 75):
        return error_for_exit_code(int(code.group(1)), f"{name}: {message}", hint=hint)
    return TemporaryFailure(f"{name}: {message}", hint=hint)


def _message(task: Any) -> str:
    return _status_message(task.error) or f"ended as {task.state}"


def _status_message(status: Any) -> str:
    return " ".join(str(status.message).split())[:300] if status is not None and status.message else ""


def _epoch_s(moment: datetime | None) -> float:
    if moment is None:
        return time.time()
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
