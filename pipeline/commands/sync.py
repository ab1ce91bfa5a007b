"""`celebdit sync`: deliver what MLflow missed of a training."""

from pathlib import Path

import click

from pipeline.commands.options import home_option, json_option, print_json, say
from pipeline.session import new_run_id, open_session


@click.command()
@click.argument("run_key")
@home_option
@json_option
def sync(run_key: str, home: Path, as_json: bool) -> None:
    """Tell MLflow what it missed of the training RUN_KEY while it was away; doing it again is harmless."""
    with open_session(home) as session:
        context = session.context(session.environment(run_id=new_run_id("sync")))
        from components.train.reporting.sync import sync as deliver

        count = deliver(run_key, context)
        run = context.tracking.training_run(run_key)
        url = context.tracking.run_url(run.info.run_id) if run is not None else ""
    say(f"run {run_key}: {count} entries delivered" if count else f"run {run_key}: MLflow has everything already")
    say(f"  MLflow  {url}")
    if as_json:
        print_json({"run_key": run_key, "delivered": count, "run_url": url})
