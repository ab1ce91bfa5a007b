"""Options that several commands share, and how results are printed."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from pipeline.session import default_home
from pipeline.steps import STEPS

F = TypeVar("F", bound=Callable[..., Any])


def home_option(function: F) -> F:
    """Add `--home`."""
    return click.option(
        "--home",
        type=click.Path(file_okay=False, path_type=Path),
        default=default_home,
        help="Folder for local state.  [default: .celebdit, or CELEBDIT_HOME]",
    )(function)


def json_option(function: F) -> F:
    """Add `--json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")(function)


def cluster_options(function: F) -> F:
    """Add what decides how a pipeline is compiled: `--images` and `--cache`."""
    function = click.option(
        "--images",
        type=click.Path(dir_okay=False, path_type=Path),
        default=Path("images.lock.json"),
        show_default=True,
        help="The images by digest, as `make images` writes them.",
    )(function)
    return click.option(
        "--cache",
        "cached",
        type=click.Choice([step.name for step in STEPS if step.cacheable]),
        multiple=True,
        help="Let KFP skip this step when it has seen its inputs before (give it again for another).",
    )(function)


def kubeflow_options(function: F) -> F:
    """Add `--endpoint` and `--namespace`."""
    function = click.option("--endpoint", metavar="URL", help="Address of Kubeflow Pipelines.  [default: KF_PIPELINES_ENDPOINT]")(function)
    return click.option("--namespace", metavar="NS", help="Your namespace, where there are several.  [default: CELEBDIT_KFP_NAMESPACE]")(
        function
    )


def wait_option(function: F) -> F:
    """Add `--wait`."""
    return click.option("--wait", is_flag=True, help="Follow the run; the exit code is the pipeline's outcome.")(function)


def license_option(function: F) -> F:
    """Add `--accept-license`."""
    return click.option(
        "--accept-license",
        "accepted_by",
        metavar="NAME",
        help="Accept the licence of the data in this name; it is recorded with everything made from them.",
    )(function)


def print_json(value: object) -> None:
    """Print the one JSON object of a command."""
    click.echo(json.dumps(value, indent=2, sort_keys=False))


def command_name() -> str:
    """Return how this user calls us, so that a command that we print can be pasted: by name if that is found, else by path."""
    called = Path(sys.argv[0])
    found = shutil.which("celebdit")
    if called.name != "celebdit" or (found is not None and Path(found).resolve() == called.resolve()):
        return "celebdit"
    near = called.absolute()
    return str(near.relative_to(Path.cwd())) if near.is_relative_to(Path.cwd()) else str(near)


def say_where(url: str, *, embedded: bool) -> None:
    """Say where MLflow shows it; the embedded server stops with the command, unless something else keeps it up."""
    say(f"MLflow: {url}")
    if embedded:
        say(f"        (if its server has stopped: `{command_name()} ui` starts it again and prints the address)")


def say(text: str = "") -> None:
    """Print a line for people, on stderr."""
    click.echo(text, err=True)
