"""`celebdit runs`: list the runs on Kubeflow Pipelines, or of this machine, or the steps of one."""

from pathlib import Path
from typing import Any, TypedDict

import click

from components.command_settings import CommandSettings
from components.environment import KFP_ENDPOINT
from components.errors import EXIT_OK, BadInput
from components.reports.columns import align_columns
from pipeline.commands.help import example
from pipeline.commands.options import (
    home_option,
    json_option,
    kubeflow_options,
    next_cluster_command,
    next_command,
    print_json,
    print_line,
    wait_option,
)
from pipeline.view import printable


@click.command(epilog=example("celebdit runs --experiment celebdit --limit 5"))
@click.argument("run_id", metavar="[RUN]", required=False)
@kubeflow_options
@click.option("--experiment", metavar="E", help="List only the runs of this experiment.")
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="Number of runs to list.")
@wait_option
@home_option
@json_option
def runs(
    run_id: str | None,
    endpoint: str | None,
    namespace: str | None,
    experiment: str | None,
    limit: int,
    wait: bool,
    home: Path,
    as_json: bool,
) -> int:
    """List the newest runs on Kubeflow Pipelines, or the steps of RUN; without an endpoint, those of this machine."""
    if not (endpoint or CommandSettings.from_environment().kfp_endpoint or wait or experiment):
        return _show_local(home, run_id, limit=limit, as_json=as_json)
    from pipeline.commands.follow import connect, follow_to_end

    kubeflow = connect(endpoint, namespace)
    if run_id is not None and wait:
        return follow_to_end(kubeflow, run_id, {"run_id": run_id}, as_json=as_json)
    if run_id is not None:
        _show(kubeflow.run(run_id), kubeflow.run_url(run_id), as_json=as_json)
        return EXIT_OK
    newest = kubeflow.runs(experiment=experiment, limit=limit)
    rows = [(str(run.run_id), str(run.state or "PENDING"), _moment(run.created_at), printable(str(run.display_name))) for run in newest]
    for line in align_columns(rows):
        print_line(line)
    if not newest:
        print_line(f"there are no runs yet; start one: {next_cluster_command('submit PRESET')}")
    if as_json:
        print_json({"runs": [_facts(run, kubeflow.run_url(str(run.run_id))) for run in newest]})
    return EXIT_OK


def _show_local(home: Path, run_id: str | None, *, limit: int, as_json: bool) -> int:
    from pipeline.local_runs import local_runs, read_run

    if run_id is not None:
        run = read_run(home / "runs" / run_id) if "/" not in run_id else None
        if run is None:
            raise BadInput(
                f"there is no run {run_id} in {home}", hint=f"`celebdit runs` lists them; for one on a cluster set {KFP_ENDPOINT}"
            )
        print_line(f"{run.run_id}: {run.state}")
        for name, seconds in run.seconds.items():
            print_line(f"  {name:<12} {seconds:.0f} s")
        for name, value in (("why", run.why), ("score", run.score), ("version", run.version), ("MLflow", run.mlflow)):
            if value is not None:
                print_line(f"  {name:<12} {printable(value)}")
        print_line(f"  folder       {run.folder}")
        if as_json:
            print_json(run.facts)
        return EXIT_OK
    newest = local_runs(home, limit=limit)
    created = [(run.created_at or "-")[:16].replace("T", " ") for run in newest]
    outcomes = [[printable(text or "") for text in (run.score, run.version)] for run in newest]
    whys = [printable(run.why or "") for run in newest]
    rows = [(run.run_id, run.state, at, *outcome) for run, at, outcome in zip(newest, created, outcomes, strict=True)]
    for line, why in zip(align_columns(rows), whys, strict=True):
        print_line(f"{line}  {why}".rstrip())  # a reason may be long: no column of its own
    if newest:
        print_line(f"  next         {next_command(f'runs {newest[0].run_id}')}, or {next_command('ui')} to look at them in MLflow")
    else:
        print_line(f"there are no runs in {home} yet; start one: {next_command('run PRESET')}. For those of a cluster set {KFP_ENDPOINT}")
    if as_json:
        print_json({"runs": [run.facts for run in newest]})
    return EXIT_OK


def _show(run: Any, url: str, *, as_json: bool) -> None:
    from pipeline.follow import failure_of, steps_of

    steps = steps_of(run)
    print_line(f"{printable(str(run.display_name))}: {run.state or 'PENDING'}")
    for name, task in steps.items():
        print_line(f"  {name:<12} {task.state!s:<9}  {_moment(task.start_time)} - {_moment(task.end_time)}  {task.pod_name or ''}")
    failure = failure_of(run, command=next_cluster_command) if run.finished_at else None
    if failure is not None:
        print_line(f"  why          {printable(failure.message)}")
        print_line(f"  next         {failure.hint}")
    print_line(f"  run          {url}")
    if as_json:
        print_json({**_facts(run, url), "steps": {name: str(task.state) for name, task in steps.items()}})


class RunFacts(TypedDict):
    """One run in the JSON output."""

    run_id: str
    name: str
    state: str
    created_at: str | None
    url: str


def _facts(run: Any, url: str) -> RunFacts:
    return {
        "run_id": str(run.run_id),
        "name": str(run.display_name),
        "state": str(run.state or "PENDING"),
        "created_at": run.created_at.isoformat() if run.created_at else None,
        "url": url,
    }


def _moment(moment: Any) -> str:
    return moment.strftime("%Y-%m-%d %H:%M") if moment is not None else "-"
