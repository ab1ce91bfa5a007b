"""`celebdit storage`: show what takes room in object storage, and delete runs, parts of runs and datasets."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from components.errors import BadInput, Interrupted
from components.reports.plural import plural
from components.stores.usage import PARTS
from pipeline.commands.cost_question import is_person_there
from pipeline.commands.help import example
from pipeline.commands.options import home_option, json_option, next_command, print_json, print_line
from pipeline.records import open_records
from pipeline.view import printable

if TYPE_CHECKING:
    from collections.abc import Iterable

    from components.runtime.context import StepContext
    from pipeline.stored.targets import Request, Target


@click.group(epilog=example("celebdit storage list"))
def storage() -> None:
    """Show what takes room in object storage, and delete what is not needed."""


@storage.command(name="list", epilog=example("celebdit storage list"))
@home_option
@json_option
def list_command(home: Path, as_json: bool) -> None:
    """List the runs and datasets of the store with their sizes, the largest first, and what refers to them."""
    from pipeline.planning.report import size
    from pipeline.stored.references import read_references
    from pipeline.stored.report import report_json, report_lines
    from pipeline.stored.targets import store_usage

    with open_records(home, artifacts=True) as context:
        usage = store_usage(context)
        references = read_references(usage.runs, context.store, context.tracking)
        root = context.root
    for line in report_lines(usage, references):
        print_line(line)
    print_line(f"{root} holds {size(usage.size_bytes) if usage.size_bytes else 'nothing'}")
    sampled = {key: run.parts["samples"].size_bytes for key, run in usage.runs.items() if "samples" in run.parts}
    if sampled:
        print_line(f"  next         {next_command(f'storage delete {max(sampled, key=sampled.__getitem__)} --part samples')}")
    if as_json:
        print_json({"store": str(root), **report_json(usage, references)})


@storage.command(
    short_help="Delete runs, parts of runs or datasets.", epilog=example("celebdit storage delete 53e830b04a95c9d2 --part samples")
)
@click.argument("runs", nargs=-1)
@click.option("--part", "parts", type=click.Choice(PARTS), multiple=True, help="Delete only this part of each run; repeat for several.")
@click.option("--dataset", "datasets", metavar="DIGEST", multiple=True, help="Delete this dataset and its features; repeat for several.")
@click.option("--quarantine", is_flag=True, help="Delete the damaged objects that were replaced.")
@click.option("--force", is_flag=True, help="Delete although something speaks against it.")
@click.option("--yes", is_flag=True, help="Delete without asking; needed where no terminal can answer.")
@home_option
@json_option
def delete(
    runs: tuple[str, ...],
    parts: tuple[str, ...],
    datasets: tuple[str, ...],
    quarantine: bool,
    force: bool,
    yes: bool,
    home: Path,
    as_json: bool,
) -> None:
    """Delete RUNS, run keys or run ids, from object storage: all of each, or the named parts.

    Refused is what MLflow says is running, what was written within the last hour, the teacher of a stored student, a dataset that a stored
    run was trained on, and what a version under an alias comes from. MLflow's records stay, and so do registered versions: each has files
    of its own. The same settings train a deleted run again.
    """
    if parts and not runs:
        raise BadInput("--part needs a run", hint="name the runs whose parts to delete")
    if not (runs or datasets or quarantine):
        raise BadInput("nothing to delete is named", hint="name runs, --dataset or --quarantine; see celebdit storage list")
    if not yes and not is_person_there():
        raise BadInput("deleting needs a terminal that can answer, or --yes", hint="look at what there is: celebdit storage list")
    from pipeline.stored.targets import Request, delete_targets, keeps_versions

    request = Request(runs, parts, datasets, quarantine)
    if not yes:
        with open_records(home, artifacts=True) as context:
            _print_targets(_deletable(request, context, force=force))
        # Asked while nothing is open: other commands on the same home would wait for the answer.
        if not click.confirm("Delete?", err=True):
            raise Interrupted("nothing was deleted", hint="to delete without a question: --yes")
    with open_records(home, artifacts=True) as context:
        targets = _deletable(request, context, force=force)  # what is refused may have changed since
        if yes:
            _print_targets(targets)
        delete_targets(targets, context)
        versioned = keeps_versions(context)
    print_line(f"deleted {plural(sum(len(target.stored.objects) for target in targets), 'object')}")
    if versioned:
        print_line("  the bucket keeps them as noncurrent versions, until a lifecycle rule removes these")
    print_line(f"  next         {next_command('storage list')}")
    if as_json:
        facts = [{"name": each.name, "objects": len(each.stored.objects), "size_bytes": each.stored.size_bytes} for each in targets]
        print_json({"deleted": facts})


def _print_targets(targets: "Iterable[Target]") -> None:
    for target in targets:
        for line in (target.summary, *(f"  {note}" for note in target.notes), *(f"  although {reason}" for reason in target.reasons)):
            print_line(printable(line))


def _deletable(request: "Request", context: "StepContext", *, force: bool) -> "list[Target]":
    """Return what a request names.

    Raises:
        BadInput: if something speaks against deleting one of it and `force` is not set.
    """
    from pipeline.stored.targets import find_targets

    targets = find_targets(request, context)
    refused = [f"{target.name}: {'; '.join(target.reasons)}" for target in targets if target.reasons]
    if refused and not force:
        raise BadInput(f"nothing was deleted: {' | '.join(refused)}", hint="delete other parts or wait; --force deletes it all the same")
    return targets
