"""`celebdit submit`: run the pipeline on Kubeflow Pipelines."""

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from components.errors import EXIT_OK, BadInput, CelebditError
from components.process_settings import step_log_level
from components.resources import ResourcesConfig
from pipeline.commands.cost_question import ask_about_cost, yes_option
from pipeline.commands.help import example
from pipeline.commands.options import (
    cluster_options,
    debug_option,
    json_option,
    kubeflow_options,
    license_option,
    next_cluster_command,
    print_json,
    print_line,
    wait_option,
)

_REPEATED = ("experiment", "wait", "accepted_by", "yes", "images", "cached", "paused")
"""Options of a submission that the same one has again."""


@click.command(epilog=example("celebdit submit celebahq256-b --accept-license 'Your Name' --wait"))
@click.argument("preset")
@click.argument("overrides", nargs=-1)
@kubeflow_options
@click.option(
    "--experiment", metavar="E", default="celebdit", show_default=True, help="KFP experiment of the run; created if it does not exist."
)
@click.option("--again", is_flag=True, help="Start a new run even if an identical one was submitted.")
@wait_option
@license_option
@yes_option
@cluster_options
@debug_option
@json_option
def submit(
    preset: str,
    overrides: tuple[str, ...],
    endpoint: str | None,
    namespace: str | None,
    experiment: str,
    again: bool,
    wait: bool,
    accepted_by: str | None,
    yes: bool,
    images: Path,
    cached: tuple[str, ...],
    paused: tuple[str, ...],
    as_json: bool,
) -> int:
    """Run the pipeline with PRESET, a preset's name or a TOML file, on Kubeflow Pipelines.

    An identical submission reuses the existing run. OVERRIDES have the form section.key=value. Credentials for the server, if it needs any,
    are read from CELEBDIT_KFP_TOKEN or CELEBDIT_KFP_COOKIES.
    """
    from components.ingest.sources.open_source import require_consent
    from pipeline.commands.follow import connect_to, follow_to_end
    from pipeline.compile import CompileOptions
    from pipeline.config import load_config
    from pipeline.images import read_lock
    from pipeline.kubeflow.address import KfpAddress
    from pipeline.submit import require_reachable_data
    from pipeline.submit import submit as submit_run

    config = load_config(preset, overrides, changes={} if accepted_by is None else {"data.licence_accepted_by": accepted_by})
    images_lock, address, *_ = all_or_all_problems(
        lambda: read_lock(images),
        lambda: KfpAddress.find(endpoint, namespace),
        lambda: require_consent(config.data),
        lambda: require_reachable_data(config),
    )
    kubeflow = connect_to(address)
    ask_about_cost(config, preset, overrides, home=None, yes=yes)
    options = CompileOptions(images=images_lock.images, preset=Path(preset).stem, cached=cached, log_level=step_log_level(), paused=paused)
    for line in _pending_steps(config.resources, kubeflow.address.namespace):
        print_line(line)
    submission = submit_run(config, options, kubeflow, experiment=experiment, again=again)
    print_line(f"{'submitted' if submission.is_new else 'already submitted, ' + submission.state.lower() + ':'} {submission.name}")
    print_line(f"  run          {submission.url}")
    if not submission.is_new and submission.state in ("FAILED", "CANCELED"):
        anew = next_cluster_command(shlex.join(["submit", preset, *overrides, "--again"]), *_REPEATED)
        print_line(f"  next         {next_cluster_command(f'resume {submission.run_id}')}, or for another run {anew}")
    if wait:
        return follow_to_end(kubeflow, submission.run_id, submission.facts, as_json=as_json)
    if submission.is_new:
        print_line(f"  next         {next_cluster_command(f'runs {submission.run_id}')}")
    if as_json:
        print_json({**submission.facts, "state": submission.state})
    return EXIT_OK


def all_or_all_problems(*parts: Callable[[], Any]) -> list[Any]:
    """Return what each of `parts` returns; several that fail are one error, a line each.

    Raises:
        BadInput: with everything that is missing. CelebditError: the one that was raised, if there is one.
    """
    results, errors = [], []
    for part in parts:
        try:
            results.append(part())
        except CelebditError as error:
            errors.append(error)
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise BadInput("\n".join(error.message + (f"; {error.hint}" if error.hint else "") for error in errors))
    return results


def _pending_steps(resources: ResourcesConfig, namespace: str | None) -> list[str]:
    """Return a warning per step that no node of the cluster of kubectl can take; none if the nodes cannot be read."""
    from pipeline.doctor.requests import pending_steps
    from pipeline.waiting_pods import find_cluster

    cluster = find_cluster(namespace)
    try:
        nodes = [] if cluster is None else cluster.nodes()
    except CelebditError:
        return []
    return [f"warning: {problem}; {fix}" for problem, fix in pending_steps(nodes, resources)] if nodes else []
