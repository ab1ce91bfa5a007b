"""`celebdit resume`: a run that stopped, started again where it was."""

import click

from components.errors import EXIT_OK
from pipeline.commands.options import json_option, kubeflow_options, print_json, say, wait_option


@click.command()
@click.argument("run_id", metavar="RUN")
@kubeflow_options
@wait_option
@json_option
def resume(run_id: str, endpoint: str | None, namespace: str | None, wait: bool, as_json: bool) -> int:
    """Start RUN again after an eviction, a failure or a cancellation.

    Finished steps are kept, and training continues from its last checkpoint.
    """
    from pipeline.commands.follow import connected, followed
    from pipeline.submit import resume as resume_run

    kubeflow = connected(endpoint, namespace)
    found = resume_run(run_id, kubeflow)
    if found.is_new:
        say(f"the old run cannot be continued; a new one finds what is finished: {found.name}")
    else:
        say(f"{found.name}: {found.state.lower()}")
    say(f"  run          {found.url}")
    facts = {"run_id": found.run_id, "name": found.name, "url": found.url, "new": found.is_new, "version": found.version}
    if wait:
        return followed(kubeflow, found.run_id, facts, as_json=as_json, resumed=True)
    if as_json:
        print_json({**facts, "state": found.state})
    return EXIT_OK
