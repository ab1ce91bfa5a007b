"""`celebdit schedule`: the pipeline again and again."""

from pathlib import Path

import click

from components.errors import BadInput
from pipeline.commands.options import cluster_options, json_option, kubeflow_options, license_option, print_json, say

_SHORTEST_S = 60


@click.command()
@click.argument("preset")
@click.argument("overrides", nargs=-1)
@click.option("--cron", metavar="EXPR", help='When, in six fields with seconds first, like "0 0 3 * * 1" for Mondays at three (UTC).')
@click.option("--every", "every_s", type=click.IntRange(min=_SHORTEST_S), metavar="SECONDS", help="How often, if not by --cron.")
@click.option("--delete", is_flag=True, help="Delete the schedule of PRESET at these times instead; its runs stay.")
@kubeflow_options
@click.option("--experiment", metavar="E", default="celebdit", show_default=True, help="The experiment that the runs belong to.")
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
    """Run the pipeline with PRESET on a schedule, one run at a time. The same schedule twice is one."""
    from components.ingest.sources.open_source import require_consent
    from pipeline.commands.follow import connected
    from pipeline.compile import CompileOptions
    from pipeline.config import load_config
    from pipeline.images import read_lock
    from pipeline.submit import Timing, unschedule
    from pipeline.submit import schedule as schedule_runs

    if (cron is None) == (every_s is None):
        raise BadInput("a schedule needs either --cron or --every", hint='like --cron "0 0 3 * * 1", or --every 86400')
    if cron is not None and len(cron.split()) != 6:
        raise BadInput(
            f"--cron {cron!r} has {len(cron.split())} fields",
            hint="Kubeflow wants six, seconds first: second minute hour day month weekday",
        )
    timing, name = Timing(cron=cron, every_s=every_s), Path(preset).stem
    if delete:
        deleted = unschedule(name, connected(endpoint, namespace), experiment=experiment, timing=timing)
        say(f"deleted {', '.join(deleted)}")
        if as_json:
            print_json({"deleted": deleted})
        return
    config = load_config(preset, overrides, changes={} if accepted_by is None else {"data.licence_accepted_by": accepted_by})
    require_consent(config.data)
    options = CompileOptions(images=read_lock(images).images, preset=name, cached=cached)
    kubeflow = connected(endpoint, namespace)
    found, is_new = schedule_runs(config, options, kubeflow, experiment=experiment, timing=timing)
    say(f"{'scheduled' if is_new else 'already scheduled:'} {found.display_name}")
    say(f"  schedules    {kubeflow.address.endpoint}/#/recurringruns")
    if as_json:
        print_json({"recurring_run_id": str(found.recurring_run_id), "name": str(found.display_name), "new": is_new})
