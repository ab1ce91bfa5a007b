"""`celebdit sweep`: search over settings by successive halving, on this machine or on Kubeflow Pipelines."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from components.environment import MLFLOW, STORE
from components.errors import EXIT_OK, BadInput, GateFailed, error_for_exit_code
from components.ingest.sources.open_source import require_consent
from components.reports.plural import plural
from components.reports.score import score_sentence
from components.system.locks import lock_or_fail
from pipeline.commands.help import example
from pipeline.commands.options import (
    cluster_options,
    home_option,
    json_option,
    kubeflow_options,
    license_option,
    next_command,
    print_gate,
    print_json,
    print_line,
)
from pipeline.commands.run import require_one_machine
from pipeline.session import SAMPLES_FILE, open_session, run_folder
from pipeline.source_check import check_source
from pipeline.sweeps.halving import Done
from pipeline.sweeps.sweep_file import Sweep, load_sweep, values_label

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.config import RunConfig
    from pipeline.sweeps.coordinator import TrialRunner
    from pipeline.sweeps.records import Finished
    from pipeline.sweeps.search import Search, StoredReports
    from pipeline.sweeps.table import SweepView


@click.command(epilog=example("celebdit sweep examples/demo-dropout.toml"))
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--submit", "submitted", is_flag=True, help="Run the trials on Kubeflow Pipelines instead of this machine.")
@click.option("--keep-services", is_flag=True, help="Keep the embedded servers running after the command.")
@kubeflow_options
@click.option("--experiment", metavar="E", default="celebdit", show_default=True, help="With --submit: KFP experiment of the runs.")
@license_option
@cluster_options
@home_option
@json_option
def sweep(
    file: Path,
    submitted: bool,
    keep_services: bool,
    endpoint: str | None,
    namespace: str | None,
    experiment: str,
    accepted_by: str | None,
    images: Path,
    cached: tuple[str, ...],
    home: Path,
    as_json: bool,
) -> int:
    """Search over the settings that FILE varies, and register the best model.

    All trials train to the first rung, the best go on to the next one, and the winner gets the full evaluation, the gate and the
    registration. Interrupted, the same command goes on where it stopped.
    """
    planned = load_sweep(file, changes={} if accepted_by is None else {"data.licence_accepted_by": accepted_by})
    base = planned.final(next(planned.space.combinations()))
    require_consent(base.data)
    make_runner = _cluster(planned, base, endpoint, namespace, experiment, images, cached) if submitted else None
    if make_runner is None:
        require_one_machine(base)
        check_source(base)
    with open_session(home, stay=keep_services, what=f"sweep {planned.config.name}") as session:
        from pipeline.sweeps.local_runner import LocalRunner
        from pipeline.sweeps.search import search

        if make_runner is not None and session.services is not None:
            raise BadInput("the trials of --submit store their results on the cluster's servers", hint=f"set {STORE} and {MLFLOW} to those")
        with lock_or_fail(home / "sweeps" / f"{planned.digest[:16]}.lock", f"sweep {planned.config.name}"):
            runner = make_runner or (lambda view, reports: LocalRunner(planned.config.name, session, view))
            done = search(planned, session.context(), runner)
            stays = session.stays
            link = None if done.mlflow_url is None else session.link(done.mlflow_url) if stays else done.mlflow_url
    return _finish(planned, done, file, home=home, link=link, as_json=as_json, servers_stay=stays)


def _cluster(
    planned: Sweep, base: "RunConfig", endpoint: str | None, namespace: str | None, experiment: str, images: Path, cached: tuple[str, ...]
) -> "Callable[[SweepView, StoredReports], TrialRunner]":
    """Connect to Kubeflow Pipelines, and return what makes the runner of the trials there."""
    from components.process_settings import step_log_level
    from pipeline.commands.follow import connect
    from pipeline.compile import CompileOptions
    from pipeline.images import read_lock
    from pipeline.submit import require_reachable_data
    from pipeline.sweeps.cluster_runner import ClusterRunner

    require_reachable_data(base)
    options = CompileOptions(images=read_lock(images).images, preset=planned.config.name, cached=cached, log_level=step_log_level())
    kubeflow = connect(endpoint, namespace)
    return lambda view, reports: ClusterRunner(kubeflow, options, experiment, planned.config.parallel, reports.find, note=view.print_line)


def _finish(planned: Sweep, done: "Search", file: Path, *, home: Path, link: str | None, as_json: bool, servers_stay: bool) -> int:
    """Print what came of the sweep, and return the exit code of its outcome.

    Raises:
        CelebditError: of the kind of the failure that stopped it.
    """
    state, final = done.state, done.state.finished
    print_line(f"  sweep      {planned.config.name}, {plural(len(state.asked), 'trial')}, {state.device_s / 3600:.3g} device hours")
    if final is not None:
        print_line(f"  winner     trial {final.trial}: {values_label(dict(state.values(final.trial)))}")
        _print_final(final, home)
    if link is not None:
        print_line(f"  MLflow     {link}")
        if not servers_stay:
            print_line(f"             (its server has stopped; `{next_command('ui')}` starts it again and prints its address)")
    if as_json and (isinstance(done.end, Done) or done.end.failure is None):
        print_json(_facts(planned, done))
    if isinstance(done.end, Done):
        if final is not None and final.gate == "pass":
            print_line(f"  next       {next_command(_winner_command(planned, final))}")
        return EXIT_OK if final is not None and final.gate == "pass" else GateFailed.exit_code
    if done.end.failure is None:
        print_line(f"  stopped    {done.end.reason}")
        print_line(f"  next       raise budget_device_hours in {file} and run it again: it goes on from here")
        return GateFailed.exit_code
    raise error_for_exit_code(done.end.failure.exit_code, done.end.reason, hint="correct the cause, then run the same command again")


def _print_final(final: "Finished", home: Path) -> None:
    """Print what came of the final run, as `celebdit run` does."""
    if final.run_key is not None:
        print_line(f"  training   run {final.run_key}")
    if final.metric is not None and final.value is not None:
        print_line(f"  score      {score_sentence(final.metric, final.value, final.std, final.noise)}; lower is better")
    print_gate(final.gate, final.reasons)
    if final.version is not None:
        print_line(f"  model      {final.model} version {final.version}")
    samples = run_folder(home, final.run_id) / SAMPLES_FILE
    if samples.is_file():  # of a run on this machine
        print_line(f"  samples    {samples}")


def _winner_command(planned: Sweep, final: "Finished") -> str:
    """Return the command to look at the registered version, or to promote it where its number is known."""
    if final.version is None:
        model = planned.final(next(planned.space.combinations())).registry.model_name
        return f"models list --model {model}"
    return f'models promote {final.version} --model {final.model} --reason "..."'


def _facts(planned: Sweep, done: "Search") -> dict[str, Any]:
    from pipeline.sweeps.standing import standings

    state = done.state
    trials = [
        {
            "trial": row.trial,
            "values": row.values,
            "scores": {str(steps): {"mean": s.mean, "low": s.low, "high": s.high} for steps, s in sorted(row.scores.items())},
            "status": row.status,
            "reason": row.reason,
        }
        for row in standings(planned, state, is_over=True)
    ]
    return {
        "name": planned.config.name,
        "digest": planned.digest,
        "metric": planned.metric,
        "stopped": None if isinstance(done.end, Done) else done.end.reason,
        "device_hours": round(state.device_s / 3600, 5),
        "trials": trials,
        "final": None if state.finished is None else state.finished.model_dump(mode="json"),
        "mlflow": done.mlflow_url,
    }
