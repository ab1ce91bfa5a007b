"""`celebdit schedule`: run the pipeline on a schedule."""

from pathlib import Path

import click

from components.errors import BadInput
from components.process_settings import step_log_level
from pipeline.commands.help import example
from pipeline.commands.options import cluster_options, json_option, kubeflow_options, license_option, print_json, print_line
from pipeline.commands.submit import all_or_all_problems

_SHORTEST_S = 60


@click.command(epilog=example('celebdit schedule celebahq256-b --cron "0 0 3 * * 1"'))
@click.argument("preset")
@click.argument("overrides", nargs=-1)
@click.option("--cron", metavar="EXPR", help='Cron expression in UTC with six fields, seconds first: "0 0 3 * * 1" is Monday at 03:00.')
@click.option(
    "--every", "every_s", type=click.IntRange(min=_SHORTEST_S), metavar="SECONDS", help="Interval between runs, instead of --cron."
)
@click.option("--delete", is_flag=True, help="Delete the schedule of PRESET with this timing; its runs are kept.")
@kubeflow_options
@click.option(
    "--experiment", metavar="E", default="celebdit", show_default=True, help="KFP experiment of the runs; created if it does not exist."
)
@license_option
@cluster_options
@json_option
def schedule(
    preset: str,
    overrides: tuple[str, ...],
    cron: str | None,
    every_s: int | None,
    delete: bool,
    endpoint: str | None,
    namespace: str | None,
    experiment: str,
    accepted_by: str | None,
    images: Path,
    cached: tuple[str, ...],
    as_json: bool,
) -> None:
    """Run the pipeline with PRESET, a preset's name or a TOML file, on a schedule.

    One run at a time. Creating the same schedule again changes nothing. OVERRIDES have the form section.key=value.
    """
    from components.ingest.sources.open_source import require_consent
    from pipeline.commands.follow import connect, connect_to
    from pipeline.compile import CompileOptions
    from pipeline.config import load_config
    from pipeline.images import read_lock
    from pipeline.kubeflow.address import KfpAddress
    from pipeline.submit import Timing, require_reachable_data, unschedule
    from pipeline.submit import schedule as schedule_runs

    if (cron is None) == (every_s is None):
        raise BadInput("a schedule needs either --cron or --every", hint='for example --cron "0 0 3 * * 1", or --every 86400')
    if cron is not None and (count := len(cron.split())) != 6:
        raise BadInput(
            f"--cron {cron!r} has {count} field{'' if count == 1 else 's'}",
            hint="Kubeflow expects six: second minute hour day month weekday",
        )
    timing, name = Timing(cron=cron, every_s=every_s), Path(preset).stem
    if delete:
        deleted = unschedule(name, connect(endpoint, namespace), experiment=experiment, timing=timing)
        print_line(f"deleted {', '.join(deleted)}")
        if as_json:
            print_json({"deleted": deleted})
        return
    config = load_config(preset, overrides, changes={} if accepted_by is None else {"data.licence_accepted_by": accepted_by})
    images_lock, address, *_ = all_or_all_problems(
        lambda: read_lock(images),
        lambda: KfpAddress.find(endpoint, namespace),
        lambda: require_consent(config.data),
        lambda: require_reachable_data(config),
    )
    options = CompileOptions(images=images_lock.images, preset=name, cached=cached, log_level=step_log_level())
    kubeflow = connect_to(address)
    recurring_run, is_new = schedule_runs(config, options, kubeflow, experiment=experiment, timing=timing)
    print_line(f"{'scheduled' if is_new else 'already scheduled:'} {recurring_run.display_name}")
    print_line(f"  schedules    {kubeflow.address.endpoint}/#/recurringruns")
    if as_json:
        print_json({"recurring_run_id": str(recurring_run.recurring_run_id), "name": str(recurring_run.display_name), "new": is_new})
