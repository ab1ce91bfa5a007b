"""A run from the command line's point of view: start it, show it, sum it up.

Promises: the summary is the same object whether it is printed for people or as JSON; an interrupted run is closed in MLflow and leaves no
process behind; the gate's "fail" is exit code 1, not an error.
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
    """What a finished run has to show."""

    facts: dict[str, Any]
    passed: bool


def execute(config: RunConfig, session: Session, view: RunView, *, preset: str, run_id: str, in_containers: bool = False) -> RunSummary:
    """Run the pipeline and return its summary.

    Raises:
        CelebditError: what the first failing step reported.
    """
    waiting = SayOnce(lambda name: view.say(f"waiting for the embedded {name} server"))
    environment = session.environment(preset=preset, run_id=run_id, on_wait=waiting)
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
    """Give the MLflow runs of an interrupted pipeline run their final status; a second Ctrl-C does not stop this."""
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
    picture = folder / "samples.png"
    context.store.get_file(StoreUri.parse(report["grid_uri"]), picture)
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
        "samples": str(picture),
        "seconds": outcome.seconds,
    }
