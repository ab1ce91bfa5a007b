"""`celebdit submit`: the pipeline on Kubeflow Pipelines."""

from pathlib import Path

import click

from components.errors import EXIT_OK
from pipeline.commands.options import cluster_options, json_option, kubeflow_options, license_option, print_json, say, wait_option


@click.command()
@click.argument("preset")
@click.argument("overrides", nargs=-1)
@kubeflow_options
@click.option(
    "--experiment", metavar="E", default="celebdit", show_default=True, help="The experiment that the run belongs to; made if needed."
)
@click.option("--again", is_flag=True, help="Start another run even if this very submission has one.")
@wait_option
@license_option
@cluster_options
@json_option
def submit(
    preset: str,
    overrides: tuple[str, ...],
    endpoint: str | None,
    namespace: str | None,
    experiment: str,
    again: bool,
    wait: bool,
    accepted_by: str | None,
    images: Path,
    cached: tuple[str, ...],
    as_json: bool,
) -> int:
    """Run the pipeline with PRESET, the name of a preset or the path of a TOML file, on Kubeflow Pipelines.

    OVERRIDES are written section.key=value. The same submission twice is one run. A token, if the server wants one, is read from
    CELEBDIT_KFP_TOKEN or CELEBDIT_KFP_COOKIES.
    """
    from components.ingest.sources.open_source import require_consent
    from pipeline.commands.follow import connected, followed
    from pipeline.compile import CompileOptions
    from pipeline.config import load_config
    from pipeline.images import read_lock
    from pipeline.submit import submit as submit_run

    config = load_config(preset, overrides, changes={} if accepted_by is None else {"data.licence_accepted_by": accepted_by})
    require_consent(config.data)
    options = CompileOptions(images=read_lock(images).images, preset=Path(preset).stem, cached=cached)
    kubeflow = connected(endpoint, namespace)
    found = submit_run(config, options, kubeflow, experiment=experiment, again=again)
    say(f"{'submitted' if found.is_new else 'already submitted, ' + found.state.lower() + ':'} {found.name}")
    say(f"  run          {found.url}")
    if not found.is_new and found.state in ("FAILED", "CANCELED"):
        say(f"  next         celebdit resume {found.run_id}, or submit with --again")
    facts = {"run_id": found.run_id, "name": found.name, "url": found.url, "new": found.is_new, "version": found.version}
    if wait:
        return followed(kubeflow, found.run_id, facts, as_json=as_json)
    if found.is_new:
        say(f"  follow it    celebdit runs {found.run_id}")
    if as_json:
        print_json({**facts, "state": found.state})
    return EXIT_OK
