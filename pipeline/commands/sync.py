"""`celebdit sync`: upload the metrics of a training that MLflow has not received."""

from pathlib import Path

import click

from components.tracking.training_names import require_run_key
from pipeline.commands.help import example
from pipeline.commands.options import home_option, json_option, print_json, print_line
from pipeline.session import new_run_id, open_session


@click.command(epilog=example("celebdit sync 53e830b04a95c9d2"))
@click.argument("run")
@home_option
@json_option
def sync(run: str, home: Path, as_json: bool) -> None:
    """Upload the metrics and images of the training of RUN that MLflow has not received. Safe to repeat.

    RUN is a run key or a run id, as `celebdit run` prints it. A training that was deleted in MLflow is found by its complete run key alone.
    """
    with open_session(home) as session:
        context = session.context(session.environment(run_id=new_run_id("sync")))
        from components.train.reporting.sync import sync as upload

        run_key = require_run_key(run, context.tracking)
        count = upload(run_key, context)
        training = context.tracking.training_run(run_key)
        url = context.tracking.run_url(training.info.run_id) if training is not None else ""
    print_line(f"run {run_key}: {count} entries uploaded" if count else f"run {run_key}: MLflow is up to date")
    print_line(f"  MLflow  {url}")
    if as_json:
        print_json({"run_key": run_key, "delivered": count, "run_url": url})
