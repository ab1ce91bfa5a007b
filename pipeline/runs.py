"""Run the pipeline for a command: start it, show it, summarise it.

Promises: text and JSON output show the same summary; an interrupted run is closed in MLflow and leaves no process behind; a failed gate is
exit code 1, not an error.
"""

import signal
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.errors import CelebditError
from components.runtime.context import StepContext
from components.runtime.events import SayOnce
from components.storage import StoreUri
from pipeline.config import RunConfig
from pipeline.local import LocalOutcome, run_locally
from pipeline.session import Session
from pipeline.view import RunView


@dataclass(frozen=True)
class RunSummary:
    """Results of a finished run."""

    facts: dict[str, Any]
    passed: bool


def execute(config: RunConfig, session: Session, view: RunView, *, preset: str, run_id: str, in_containers: bool = False) -> RunSummary:
    """Run the pipeline and return its summary.

    Raises:
        CelebditError: the error of the first step that failed.
    """
    environment = session.environment(preset=preset, run_id=run_id, on_wait=SayOnce(view.say_waiting))
    context = session.context(environment)
    folder = session.home.absolute() / "runs" / run_id
    view.say(f"run {run_id}, log: {folder / 'log.txt'}")
    try:
        outcome = run_locally(config, folder, environment, on_event=view, in_containers=in_containers)
    except KeyboardInterrupt:
        view.say("interrupted: closing the run")
        _close_interrupted(context)
        raise
    if outcome.failure is not None:
        raise outcome.failure
    return RunSummary(facts=_facts(config, outcome, context, folder, run_id), passed=outcome.results["gate"]["decision"] == "pass")


def _close_interrupted(context: StepContext) -> None:
    """Set the final status of the MLflow runs of an interrupted pipeline run, ignoring a second Ctrl-C."""
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        from components.finalize.finalize import run  # noqa: PLC0415 - imports MLflow, which takes seconds

        with suppress(CelebditError):
            run("KILLED", "interrupted", context)
    finally:
        signal.signal(signal.SIGINT, previous)


def _facts(config: RunConfig, outcome: LocalOutcome, context: StepContext, folder: Path, run_id: str) -> dict[str, Any]:
    results = outcome.results
    report, checkpoint, dataset, gate = results["evaluate"], results["train"], results["ingest"], results["gate"]
    version = results.get("register")
    samples = folder / "samples.png"
    context.store.get_file(StoreUri.parse(report["grid_uri"]), samples)
    return {
        "run_id": run_id,
        "config_digest": config.digest(),
        "run_key": checkpoint["run_key"],
        "dataset": {
            "digest": dataset["digest"],
            "num_images": dataset["num_images"],
            "rejected": dataset["rejected"],
            "uri": dataset["uri"],
        },
        "training_steps": checkpoint["step"],
        "checkpoint": {"digest": checkpoint["digest"], "uri": checkpoint["uri"]},
        "score": {"name": report["headline"], "value": report["metrics"][report["headline"]]},
        "metrics": report["metrics"],
        "gate": {"decision": gate["decision"], "reasons": gate["reasons"]},
        "model": None if version is None else {"name": version["name"], "version": version["version"], "aliases": version["aliases"]},
        "mlflow": {**results["preflight"], "model_uri": None if version is None else version["model_uri"]},
        "samples": str(samples),
        "seconds": outcome.seconds,
    }
