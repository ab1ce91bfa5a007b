"""`celebdit ui` and `celebdit services`: the embedded servers by hand."""

from pathlib import Path

import click

from components.runtime.events import SayOnce
from pipeline.commands.options import command_name, home_option, json_option, print_json, say
from pipeline.services import Endpoints, Services


@click.command()
@click.option("--s3-port", type=click.IntRange(1, 65535), help="Port of the S3 server.  [default: a free one]")
@click.option("--mlflow-port", type=click.IntRange(1, 65535), help="Port of MLflow.  [default: a free one]")
@home_option
@json_option
def ui(s3_port: int | None, mlflow_port: int | None, home: Path, as_json: bool) -> None:
    """Keep the embedded servers running and print where to look."""
    _up(home, s3_port, mlflow_port, as_json=as_json)


@click.group()
def services() -> None:
    """Start, stop and look at the embedded servers."""


@services.command()
@click.option("--s3-port", type=click.IntRange(1, 65535), help="Port of the S3 server.  [default: a free one]")
@click.option("--mlflow-port", type=click.IntRange(1, 65535), help="Port of MLflow.  [default: a free one]")
@home_option
@json_option
def up(s3_port: int | None, mlflow_port: int | None, home: Path, as_json: bool) -> None:
    """Start the servers and leave them running."""
    _up(home, s3_port, mlflow_port, as_json=as_json)


@services.command()
@home_option
@json_option
def down(home: Path, as_json: bool) -> None:
    """Stop the servers; everything they stored is kept."""
    stopped = Services(home).stop()
    say(f"stopped {' and '.join(stopped)}" if stopped else "nothing was running")
    if as_json:
        print_json({"stopped": stopped})


@services.command()
@home_option
@json_option
def status(home: Path, as_json: bool) -> None:
    """Say which servers run, and where."""
    running = Services(home).running()
    for name in ("s3", "mlflow"):
        say(f"{name:<7} {running[name].url + f' (process {running[name].pid})' if name in running else 'not running'}")
    if as_json:
        print_json({name: {"url": server.url, "pid": server.pid} for name, server in running.items()})


def _up(home: Path, s3_port: int | None, mlflow_port: int | None, *, as_json: bool) -> None:
    embedded = Services(home)
    embedded.start(stay=True, s3_port=s3_port, mlflow_port=mlflow_port)
    waiting = SayOnce(lambda name: say(f"waiting for {name} ..."))
    endpoints = embedded.wait(on_wait=waiting)
    _show(endpoints)
    if as_json:
        print_json({"mlflow": endpoints.mlflow_url, "s3": endpoints.s3_url})


def _show(endpoints: Endpoints) -> None:
    say(f"MLflow runs    {endpoints.mlflow_url}/#/experiments?workflowType=machine_learning")
    say(f"MLflow models  {endpoints.mlflow_url}/#/models?workflowType=machine_learning")
    say(f"S3             {endpoints.s3_url}")
    say(f"stop with      {command_name()} services down")
