"""The finalize step: set the status of every MLflow run of the pipeline, and log a summary to the pipeline's own run.

Promises: works after success, failure and kill alike; a run that another pipeline is still training is left alone. Never raises for
what only affects how a finished run is displayed.
"""

from typing import Literal, NamedTuple

from components.runtime.context import StepContext
from components.tracking.request_limits import limit_requests
from components.tracking.tags import TAG_KIND, TAG_RUN, TAG_RUN_KEY, TAG_SCORE, TAG_STEP, TAG_VERSION

Outcome = Literal["FINISHED", "FAILED", "KILLED"]


class Result(NamedTuple):
    """Outputs of a pipeline run, as texts, because Kubeflow shows them: "none" for what the run did not reach."""

    score: str
    """The headline metric with its interval."""
    version: str
    """The registered version's number."""


def outcome_of(state: str) -> Outcome:
    """Return the MLflow status for KFP's final state of a pipeline; kfp.local and the cluster spell success differently."""
    if state in ("SUCCEEDED", "SUCCESS"):
        return "FINISHED"
    return "KILLED" if state in ("CANCELLED", "CANCELED") else "FAILED"


def run(outcome: Outcome, message: str, context: StepContext) -> Result:
    """Close every run of this pipeline run that is still RUNNING, the pipeline's own with `outcome`; return what it has reached."""
    if outcome == "FAILED":  # perhaps because MLflow does not answer: whoever waits for the reason waits no longer than needed
        limit_requests(timeout_s=10, max_retries=1)
    tracking = context.tracking
    parent = tracking.pipeline_run()
    own = tracking.search_runs({TAG_RUN: context.settings.pipeline_run_id})
    for child in own:
        if child.info.run_id != parent.info.run_id and child.info.status == "RUNNING":
            tracking.set_status(child.info.run_id, "KILLED" if outcome != "FAILED" else "FAILED")
            context.events.note(f"{child.data.tags.get(TAG_STEP, 'a step')} was still running and is closed")
    summary: dict[str, float] = {}
    for child in own:
        if child.data.tags.get(TAG_STEP) == "evaluate":
            summary |= child.data.metrics
    missing = {key: value for key, value in summary.items() if key not in parent.data.metrics}
    if missing:
        tracking.log_values(parent.info.run_id, missing)
    tags = {"outcome": outcome, **({"error.message": message} if message else {})}
    keys = {child.data.tags[TAG_RUN_KEY] for child in own if TAG_RUN_KEY in child.data.tags}
    if keys:
        tags[TAG_RUN_KEY] = ",".join(sorted(keys))
    tracking.set_tags(parent.info.run_id, tags)
    tracking.set_status(parent.info.run_id, outcome)
    return Result(score=parent.data.tags.get(TAG_SCORE, "none"), version=parent.data.tags.get(TAG_VERSION, "none"))


def close_killed(message: str, context: StepContext) -> None:
    """Close as KILLED what the pipeline run of `context`, whose processes are gone, left open; a run that it had closed stays as it is."""
    tracking = context.tracking
    own = tracking.search_runs({TAG_RUN: context.settings.pipeline_run_id})
    if any(run.info.status == "RUNNING" for run in own if run.data.tags.get(TAG_KIND) == "pipeline"):
        run("KILLED", message, context)
        return
    for child in own:
        if child.info.status == "RUNNING":
            tracking.set_status(child.info.run_id, "KILLED")
