"""Options that several commands share, and how results are printed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from pipeline.session import default_home

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


def print_json(value: object) -> None:
    """Print the one JSON object of a command."""
    click.echo(json.dumps(value, indent=2, sort_keys=False))


def say(text: str = "") -> None:
    """Print a line for people, on stderr."""
    click.echo(text, err=True)
