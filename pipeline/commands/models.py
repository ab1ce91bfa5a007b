"""`celebdit models`: list, promote and roll back versions of registered models."""

import io
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar

import click

from components.command_settings import CommandSettings
from components.environment import MODEL
from components.registry.promotions.moves import CHAMPION
from components.registry.tags import VersionTags, flat_tags
from components.registry.webhook import send, webhook_url
from components.reports.score import score_text
from components.system.user import user_name
from components.system.work_folders import WorkFolder
from pipeline.commands.commands_in_hints import complete_commands
from pipeline.commands.help import example
from pipeline.commands.models_package import package
from pipeline.commands.models_sign import sign
from pipeline.commands.options import check_model, home_option, json_option, next_command, print_json, print_line
from pipeline.promotion_view import history_json, history_lines, move_json, problem_lines, problems_json
from pipeline.records import SCHEME, open_records
from pipeline.view import printable

if TYPE_CHECKING:
    from components.registry.client import ModelVersion, Registry
    from components.registry.promotions.moves import Standing
    from components.runtime.context import StepContext

F = TypeVar("F", bound=Callable[..., Any])
_DEFAULT = "celebdit"
_IMAGE = re.compile(r"!\[[^]]*\]\([^)]*\)\n*")
_PIPED_WIDTH = 200


class VersionFacts(TypedDict):
    """One version in the JSON output; None is what its tags do not have."""

    version: str
    aliases: list[str]
    created: str
    checkpoint: str | None
    gate: str | None
    protocol: str | None
    metrics: dict[str, float]


def _model_option(function: F) -> F:
    text = f"Name of the registered model.  [default: {MODEL}, or {_DEFAULT}, or the only one that there is]"
    return click.option("--model", "name", envvar=MODEL, callback=check_model, help=text)(function)


@contextmanager
def _registry(home: Path, name: str | None) -> Iterator["Registry"]:
    """Yield the model `name`, or without a name the default one; if that has no versions and there is a single other model, that one."""
    with open_records(home) as context:
        yield _model(context, name)


def _model(context: "StepContext", name: str | None) -> "Registry":
    from components.registry.client import Registry

    registry = Registry(context.tracking, name or _DEFAULT)
    if name is None and not registry.versions() and len(names := registry.other_names()) == 1:
        registry = Registry(context.tracking, names[0])
    return registry


@click.group(epilog=example("celebdit models list --model celebdit-demo"))
def models() -> None:
    """List, promote, roll back, sign and package model versions."""


@models.command(name="list", epilog=example("celebdit models list --model celebdit-demo"))
@_model_option
@home_option
@json_option
def list_command(name: str | None, home: Path, as_json: bool) -> None:
    """List the versions of a model with their aliases."""
    with _registry(home, name) as registry:
        name = registry.name
        state = registry.described_state()
        aliases = {} if state is None else state.aliases
        rows = [_summary(version, aliases) for version in registry.versions()]
        advice = "" if rows else registry.hint_if_empty()
    if not rows:
        print_line(f"model {name!r} has no versions yet; {complete_commands(advice)}")
    for row in rows:
        print_line(
            f"{row['version']:>4}  {row['created']}  {(row['checkpoint'] or '')[:12]:<12}  gate {row['gate'] or 'none':<4}  "
            f"{_headline(row['metrics'])}  {' '.join(row['aliases'])}".rstrip()
        )
    for line in [] if state is None else problem_lines(state):
        print_line(complete_commands(line))
    if rows:
        newest = rows[-1]["version"]
        print_line(f"  details: {next_command(f'models show {newest} --model {name}')}")
    if as_json:
        print_json({"model": name, "versions": rows, **problems_json(state)})


@models.command(short_help="Show one version.", epilog=example("celebdit models show challenger --model celebdit-demo"))
@click.argument("version")
@_model_option
@home_option
@json_option
def show(version: str, name: str | None, home: Path, as_json: bool) -> None:
    """Show VERSION (a number or an alias): its model card, origin, metrics, aliases and promotions."""
    with _registry(home, name) as registry:
        name = registry.name
        model_version = registry.resolve(version)
        number = str(model_version.version)
        state = registry.described_state()
        row = _summary(model_version, {} if state is None else state.aliases)
        entries = [] if state is None else state.entries_of(number)
        server = registry.tracking.settings.mlflow_uri
        url = None if server.startswith(SCHEME) else f"{server}/#/models/{name}/versions/{number}?workflowType=machine_learning"
    _print_card(complete_commands(_own_commands(model_version.description or "no model card", name, number, row["aliases"])))
    tags = dict(sorted(flat_tags(model_version.tags).items()))
    for key, value in tags.items():
        if not key.startswith("eval/"):
            print_line(f"  {key:<20} {printable(value)}")
    print_line(f"  {'aliases':<20} {', '.join(row['aliases']) or 'none'}")
    for move in (entry.move for entry in entries):
        print_line(f"  {move.at}  {move.action} by {printable(move.by)}{' (forced)' if move.forced else ''}: {printable(move.reason)}")
    for line in [] if state is None else problem_lines(state):
        print_line(f"  {complete_commands(line)}")
    print_line(f"  {url or 'its page in MLflow: ' + next_command('ui')}")
    if as_json:
        moves = [move_json(entry) for entry in entries]
        facts = {"tags": tags, "card": model_version.description, "moves": moves, "url": url, **problems_json(state)}
        print_json({"model": name, **row, **facts})


@models.command(
    short_help="Make a version the champion.",
    epilog=example('celebdit models promote 3 --model celebdit-demo --reason "lower FID, higher recall"'),
)
@click.argument("version")
@click.option("--reason", required=True, help="Reason, recorded in the promotion log.")
@click.option("--force", is_flag=True, help="Promote even if the gate failed or never ran; recorded in the promotion log.")
@_model_option
@home_option
@json_option
def promote(version: str, reason: str, force: bool, name: str | None, home: Path, as_json: bool) -> None:
    """Make VERSION (a number or an alias) the champion; the current champion becomes `previous`.

    With the public key in CELEBDIT_VERIFY_KEY, a version that its private key did not sign is refused, with --force too.
    """
    settings = CommandSettings.from_environment()
    webhook, key = webhook_url(settings), settings.verify_key
    with open_records(home, artifacts=key is not None) as context:
        registry = _model(context, name)
        name = registry.name
        number = str(registry.resolve(version).version)
        if key is not None:
            registry.files_of(number, context.scratch(WorkFolder.MODELS), verify_key=key)
        standing = registry.promote(number, reason=reason, by=user_name(), force=force, note=print_note)
    _show(name, standing, as_json=as_json)
    _notify(webhook, "promote", name, number, reason, standing)


@models.command(
    short_help="Make the previous champion the champion again.",
    epilog=example('celebdit models rollback --model celebdit-demo --reason "dark corners in production"'),
)
@click.option("--reason", required=True, help="Reason, recorded in the promotion log.")
@_model_option
@home_option
@json_option
def rollback(reason: str, name: str | None, home: Path, as_json: bool) -> None:
    """Undo the latest promotion: make the previous champion the champion again."""
    webhook = webhook_url(CommandSettings.from_environment())
    with _registry(home, name) as registry:
        name = registry.name
        standing = registry.rollback(reason=reason, by=user_name(), note=print_note)
    _show(name, standing, as_json=as_json)
    _notify(webhook, "rollback", name, standing.champion, reason, standing)


@models.command(epilog=example("celebdit models history --model celebdit-demo"))
@_model_option
@home_option
@json_option
def history(name: str | None, home: Path, as_json: bool) -> None:
    """List all promotions, rollbacks and moves by hand, oldest first, and what aliases and log disagree about."""
    with _registry(home, name) as registry:
        name = registry.name
        state = registry.described_state(take_over_as=user_name())
        advice = "" if state is not None else f"; {registry.hint_if_empty()}"
    lines = [] if state is None else history_lines(state)
    for line in lines:
        print_line(line)
    if not lines:
        print_line(f"model {name!r} has no promotions yet{complete_commands(advice)}")
    for line in [] if state is None else problem_lines(state):
        print_line(complete_commands(line))
    if as_json:
        print_json({"model": name, **({"moves": [], **problems_json(None)} if state is None else history_json(state))})


models.add_command(package)
models.add_command(sign)


def print_note(text: str) -> None:
    """Print what was odd before a change."""
    print_line(printable(complete_commands(text)))


def printable_lines(text: str) -> str:
    """Return `text` without control characters other than its line breaks."""
    return "\n".join(printable(line) for line in text.splitlines())


def _own_commands(card: str, name: str, number: str, aliases: Sequence[str]) -> str:
    """Return `card` with commands for the version itself, unless it is the champion, which the card names."""
    return card if CHAMPION in aliases else card.replace(f"{name}@{CHAMPION}", f"{name}/{number}")


def _print_card(card: str) -> None:
    """Print a model card, which is markdown, as text."""
    from rich.console import Console
    from rich.markdown import Markdown

    text = Markdown(_IMAGE.sub("", printable_lines(card)), hyperlinks=False)
    if sys.stderr.isatty():
        Console(file=sys.stderr, highlight=False).print(text)
        return
    console = Console(file=io.StringIO(), highlight=False, width=_PIPED_WIDTH)  # which fills every line with blanks
    with console.capture() as capture:
        console.print(text)
    for line in capture.get().splitlines():
        print_line(line.rstrip())


def _summary(version: "ModelVersion", aliases: Mapping[str, str]) -> VersionFacts:
    number, tags = str(version.version), VersionTags.from_mlflow(version.tags)
    return {
        "version": number,
        "aliases": sorted(alias for alias, on in aliases.items() if on == number),
        "created": time.strftime("%Y-%m-%d %H:%M", time.gmtime(version.creation_timestamp / 1000)),
        "checkpoint": tags.checkpoint_digest,
        "gate": tags.gate,
        "protocol": tags.protocol_name,
        "metrics": dict(tags.metrics),
    }


def _headline(metrics: dict[str, float]) -> str:
    """Return the Frechet distances with half of their 95 % intervals, the metric by which versions are compared."""
    names = sorted(key for key in metrics if key.startswith(("eval/fid_", "eval/fd_")) and not key.endswith(("_std", "_of_noise")))
    return ", ".join(f"{key} {score_text(metrics[key], metrics.get(f'{key}_std'))}" for key in names)


def _show(name: str, standing: "Standing", *, as_json: bool) -> None:
    print_line(
        f"{name}: champion is version {standing.champion}" + (f", previous is version {standing.previous}" if standing.previous else "")
    )
    if as_json:
        print_json({"model": name, "champion": standing.champion, "previous": standing.previous})


def _notify(webhook: str | None, action: str, name: str, version: str | None, reason: str, standing: "Standing") -> None:
    if webhook is None:
        return
    facts = {"action": action, "model": name, "version": version, "reason": reason, "by": user_name(), **vars(standing)}
    problem = send(webhook, facts)
    if problem is not None:
        print_line(f"  the promotion is done, but the webhook was not notified: {problem}")
