"""`celebdit sync`: deliver what MLflow missed of a training."""

from pathlib import Path

import click

from components.errors import BadInput
from pipeline.commands.options import home_option, json_option, print_json, say
from pipeline.session import open_session


@click.command()
@click.argument("run_key")
@home_option
@json_option
def sync(run_key: str, home: Path, as_json: bool) -> None:
    """Tell MLflow what it missed of the training RUN_KEY while it was away; doing it again is harmless."""
    with open_session(home) as session:
        context = session.context()
        folder = context.settings.work_dir / "runs" / run_key / "journal"
        if not (folder / "journal.jsonl").exists():
            raise BadInput(
                f"there is no journal of run {run_key!r} in {folder.parent.parent}", hint="name a run key as `celebdit run` prints it"
            )
        from components.journal import Journal
        from components.train.destination import MlflowDestination

        journal = Journal(folder)
        pending, _ = journal.pending()
        journal.deliver(MlflowDestination(context.settings, run_key))
    say(f"run {run_key}: {len(pending)} entries delivered" if pending else f"run {run_key}: MLflow has everything already")
    if as_json:
        print_json({"run_key": run_key, "delivered": len(pending)})
