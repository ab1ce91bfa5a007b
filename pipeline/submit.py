"""Submit, resume and schedule runs on Kubeflow Pipelines.

Promises: identical submissions are one run, even if a response was lost; finished work is not repeated, because every step reuses its own.
Requests to the server are made in `kubeflow/`; runs are followed in `follow.py`.
"""

import re
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from components.errors import BadInput, TemporaryFailure, shorten
from components.ingest.sources.open_source import kind_of
from pipeline.compile import CompileOptions, compile_pipeline
from pipeline.config import RunConfig
from pipeline.follow import ENDED
from pipeline.kubeflow import Kubeflow, Version, has_timing, mlflow_plugin


class SubmissionFacts(TypedDict):
    """A submission in the JSON output."""

    run_id: str
    name: str
    url: str
    new: bool
    version: str


@dataclass(frozen=True)
class Submission:
    """A run on the server."""

    run_id: str
    name: str
    url: str
    state: str
    is_new: bool
    version: str

    @property
    def facts(self) -> SubmissionFacts:
        return {"run_id": self.run_id, "name": self.name, "url": self.url, "new": self.is_new, "version": self.version}


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
    run = existing[0] if existing else kubeflow.start_run(name, experiment_id, version, plugins=mlflow_plugin(experiment))
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
    experiment_id = kubeflow.experiment(experiment)
    return kubeflow.schedule(name, experiment_id, version, cron=timing.cron, every_s=timing.every_s, plugins=mlflow_plugin(experiment))


def unschedule(preset: str, kubeflow: Kubeflow, *, experiment: str, timing: Timing) -> list[str]:
    """Delete the schedules of `preset` with this timing, of any configuration, and return their names; their runs are kept.

    Raises:
        BadInput: if there is no such schedule.
    """
    experiment_id = kubeflow.find_experiment(experiment)
    pattern = re.compile(rf"{re.escape(preset)}-[0-9a-f]{{12}}-{re.escape(timing.name)}")
    entries = kubeflow.schedules(experiment_id) if experiment_id is not None else []
    matching = [
        entry
        for entry in entries
        if pattern.fullmatch(str(entry.display_name)) and has_timing(entry, cron=timing.cron, every_s=timing.every_s)
    ]
    if not matching:
        names = ", ".join(sorted(str(entry.display_name) for entry in entries))
        raise BadInput(
            f"experiment {experiment} has no schedule of {preset} with this timing",
            hint=f"it has: {shorten(names, max_characters=1000) or 'none'}",
        )
    for entry in matching:
        kubeflow.unschedule(str(entry.recurring_run_id))
    return sorted(str(entry.display_name) for entry in matching)


def resume(run_id: str, kubeflow: Kubeflow, *, clock: Callable[[], float] = time.time) -> Submission:
    """Retry the failed steps of a run, or start a new run of the same version if the server cannot retry this one.

    Raises:
        BadInput: if there is nothing to resume.
    """
    run = kubeflow.run(run_id)
    state, name = str(run.state), str(run.display_name)
    if state == "SUCCEEDED":
        raise BadInput(f"run {name} has succeeded, there is nothing to resume", hint="for another run, submit it as before and add --again")
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
        new_name = f"{name}-resumed-{clock():.0f}"
        new_run = kubeflow.start_run(new_name, str(run.experiment_id), version, parameters, plugins=run.plugins_input)
        return Submission(
            str(new_run.run_id),
            str(new_run.display_name),
            kubeflow.run_url(str(new_run.run_id)),
            str(new_run.state or "PENDING"),
            is_new=True,
            version=version.version_id,
        )
    return Submission(run_id, name, kubeflow.run_url(run_id), "RUNNING", is_new=False, version=version.version_id)


def require_reachable_data(config: RunConfig) -> None:
    """Check that data and weights are not on this machine, where no pod can read them.

    Raises:
        BadInput: with the name of the field.
    """
    weights = config.evaluation.weights
    local = {
        "data.source": config.data.source if kind_of(config.data.source).local_path is not None else None,
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
        configuration = config.digest()[:12]
        text, tags = f"preset {options.preset}, configuration {configuration}", {"preset": options.preset, "configuration": configuration}
        return kubeflow.version(version_name(digest), package, text, tags), digest


def _version_of(run: Any) -> Version:
    reference = run.pipeline_version_reference
    return Version(
        str(reference.pipeline_id or "") if reference else "", str(reference.pipeline_version_id or "") if reference else "", is_new=False
    )
