"""`celebdit ui` and `celebdit services`: start, stop and list the embedded servers, and say how to reach them."""

import os
import shlex
import sys
from pathlib import Path

import click

from components.errors import BadInput
from components.runtime.events import OnceFilter
from pipeline.commands.help import example
from pipeline.commands.options import home_option, json_option, next_command, print_json, print_line
from pipeline.embedded_environment import bending_names
from pipeline.services import Endpoints, Services

_MLFLOW_PORT = "Port of MLflow, remembered.  [default: the remembered one, or the first free one from 5000]"


@click.command(epilog=example("celebdit ui --mlflow-port 5000"))
@click.option("--s3-port", type=click.IntRange(1, 65535), help="Port of the S3 server.  [default: a free port]")
@click.option("--mlflow-port", type=click.IntRange(1, 65535), help=_MLFLOW_PORT)
@home_option
@json_option
def ui(s3_port: int | None, mlflow_port: int | None, home: Path, as_json: bool) -> None:
    """Start the embedded servers, leave them running and print their addresses."""
    _up(home, s3_port, mlflow_port, as_json=as_json)


@click.group(epilog=example("celebdit services status"))
def services() -> None:
    """Start, stop and list the embedded servers: S3 and MLflow on this machine."""


@services.command(epilog=example("celebdit services up --s3-port 9000 --mlflow-port 5000"))
@click.option("--s3-port", type=click.IntRange(1, 65535), help="Port of the S3 server.  [default: a free port]")
@click.option("--mlflow-port", type=click.IntRange(1, 65535), help=_MLFLOW_PORT)
@home_option
@json_option
def up(s3_port: int | None, mlflow_port: int | None, home: Path, as_json: bool) -> None:
    """Start the servers and leave them running."""
    _up(home, s3_port, mlflow_port, as_json=as_json)


@services.command(epilog=example("celebdit services env --json"))
@home_option
@json_option
def env(home: Path, as_json: bool) -> None:
    """Print shell commands that lead other programs to the running servers, with their secrets.

    Use it like this: eval "$(celebdit services env)"
    """
    variables = Services(home).wait().environment
    if as_json:
        print_json(variables)
        return
    bending = [name for name in bending_names(os.environ) if name not in variables and name.isidentifier()]
    if bending:
        click.echo(f"unset {' '.join(bending)}")
    for name, value in variables.items():
        click.echo(f"export {name}={shlex.quote(value)}")


@services.command(epilog=example("celebdit services down"))
@click.option("--yes", is_flag=True, help="Stop them without asking, also while a run uses them.")
@home_option
@json_option
def down(yes: bool, home: Path, as_json: bool) -> None:
    """Stop the servers; their data is kept."""
    embedded = Services(home)
    users = embedded.users()
    if users and not yes:
        _confirm(users)
    stopped = embedded.stop()
    print_line(f"stopped {' and '.join(stopped)}" if stopped else "no server was running")
    if as_json:
        print_json({"stopped": stopped})


@services.command(epilog=example("celebdit services status --json"))
@home_option
@json_option
def status(home: Path, as_json: bool) -> None:
    """Show which servers are running, and their addresses."""
    running = Services(home).running_servers()
    for name in ("s3", "mlflow"):
        print_line(f"{name:<7} {running[name].url + f' (process {running[name].pid})' if name in running else 'not running'}")
    if as_json:
        print_json({name: {"url": server.url, "pid": server.pid} for name, server in running.items()})


def _confirm(users: list[str]) -> None:
    """Ask whether to stop servers that are in use.

    Raises:
        BadInput: if the answer is no, or there is no terminal to ask on.
    """
    in_use = f"the servers are used by {', '.join(users)}"
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise BadInput(in_use, hint="wait for it to end, or stop them all the same with --yes: it will fail")
    if not click.confirm(f"{in_use}, which will fail. Stop them?", err=True):
        raise BadInput("the servers were not stopped", hint="run this again when nothing uses them")


def _up(home: Path, s3_port: int | None, mlflow_port: int | None, *, as_json: bool) -> None:
    embedded = Services(home)
    embedded.start(stay=True, s3_port=s3_port, mlflow_port=mlflow_port)
    endpoints = embedded.wait(on_wait=OnceFilter(lambda name: print_line(f"waiting for {name} ...")))
    _show(endpoints)
    if as_json:
        print_json({"mlflow": endpoints.mlflow_url, "s3": endpoints.s3_url})


def _show(endpoints: Endpoints) -> None:
    for name, page in (("runs", "experiments"), ("models", "models")):
        address = endpoints.link(f"{endpoints.mlflow_url}/#/{page}?workflowType=machine_learning")
        print_line(f"{'MLflow ' + name:<15}{address}")
    print_line(f"S3             {endpoints.s3_url}")
    print_line(f'for programs   eval "$({next_command("services env")})"')
    print_line(f"stop with      {next_command('services down')}")
