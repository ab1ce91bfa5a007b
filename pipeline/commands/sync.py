"""`celebdit sync`: upload the metrics of a training that MLflow has not received."""

from pathlib import Path

import click

from pipeline.commands.help import example
from pipeline.commands.options import home_option, json_option, print_json, print_line
from pipeline.session import new_run_id, open_session


@click.command(epilog=example("celebdit sync 53e830b04a95c9d2"))
@click.argument("run_key")
@home_option
@json_option
def sync(run_key: str, home: Path, as_json: bool) -> None:
    """Upload the metrics and images of training RUN_KEY that MLflow has not received. Safe to repeat."""
    with open_session(home) as session:
        context = session.context(session.environment(run_id=new_run_id("sync")))
        from components.train.reporting.sync import sync as upload

        count = upload(run_key, context)
        run = context.tracking.training_run(run_key)
        url = context.tracking.run_url(run.info.run_id) if run is not None else ""
    print_line(f"run {run_key}: {count} entries uploaded" if count else f"run {run_key}: MLflow is up to date")
    print_line(f"  MLflow  {url}")
    if as_json:
        print_json({"run_key": run_key, "delivered": count, "run_url": url})
