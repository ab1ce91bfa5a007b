"""`celebdit models`: what is in the registry, and who is champion."""

import getpass
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from pipeline.commands.options import home_option, json_option, print_json, say
from pipeline.session import open_session

if TYPE_CHECKING:
    from components.registry import Registry, Standing

F = TypeVar("F", bound=Callable[..., Any])


def _model_option(function: F) -> F:
    return click.option(
        "--model", "name", default="celebdit", show_default=True, envvar="CELEBDIT_MODEL", help="Name of the registered model."
    )(function)


@contextmanager
def _registry(home: Path, name: str) -> Iterator["Registry"]:
    with open_session(home) as session:
        from components.registry import Registry

        yield Registry(session.context().tracking, name)


@click.group()
def models() -> None:
    """List, promote and roll back model versions."""


@models.command(name="list")
@_model_option
@home_option
@json_option
def list_command(name: str, home: Path, as_json: bool) -> None:
    """List the versions of a model with their aliases."""
    with _registry(home, name) as registry:
        aliases = registry.aliases()
        rows: list[dict[str, Any]] = [
            {
                "version": str(version.version),
                "aliases": sorted(alias for alias, number in aliases.items() if number == str(version.version)),
                "created": time.strftime("%Y-%m-%d %H:%M", time.gmtime(version.creation_timestamp / 1000)),
                "checkpoint": version.tags.get("checkpoint.digest"),
                "metrics": {key: float(value) for key, value in version.tags.items() if key.startswith("eval/")},
            }
            for version in registry.versions()
        ]
    if not rows:
        say(f"model {name!r} has no versions yet")
    for row in rows:
        numbers = ", ".join(f"{key}={value:.4g}" for key, value in row["metrics"].items())
        say(f"{row['version']:>4}  {row['created']}  {(row['checkpoint'] or '')[:12]}  {numbers}  {' '.join(row['aliases'])}")
    if as_json:
        print_json({"model": name, "versions": rows})


@models.command()
@click.argument("version")
@click.option("--reason", required=True, help="Why; it is kept in the promotion log.")
@click.option("--force", is_flag=True, help="Promote although the gate did not pass.")
@_model_option
@home_option
@json_option
def promote(version: str, reason: str, force: bool, name: str, home: Path, as_json: bool) -> None:
    """Make VERSION the champion; the old one becomes `previous`."""
    with _registry(home, name) as registry:
        standing = registry.promote(version, reason=reason, by=getpass.getuser(), force=force)
    _show(name, standing, as_json=as_json)


@models.command()
@click.option("--reason", required=True, help="Why; it is kept in the promotion log.")
@_model_option
@home_option
@json_option
def rollback(reason: str, name: str, home: Path, as_json: bool) -> None:
    """Undo the newest promotion."""
    with _registry(home, name) as registry:
        standing = registry.rollback(reason=reason, by=getpass.getuser())
    _show(name, standing, as_json=as_json)


@models.command()
@_model_option
@home_option
@json_option
def history(name: str, home: Path, as_json: bool) -> None:
    """Show every promotion and rollback, oldest first."""
    with _registry(home, name) as registry:
        moves = registry.moves()
    for move in moves:
        say(f"{move.at}  {move.action:<8}  version {move.version}  by {move.by}{' (forced)' if move.forced else ''}: {move.reason}")
    if not moves:
        say(f"nothing was promoted in model {name!r} yet")
    if as_json:
        print_json({"model": name, "moves": [vars(move) for move in moves]})


def _show(name: str, standing: "Standing", *, as_json: bool) -> None:
    say(f"{name}: champion is version {standing.champion}" + (f", previous is version {standing.previous}" if standing.previous else ""))
    if as_json:
        print_json({"model": name, "champion": standing.champion, "previous": standing.previous})
