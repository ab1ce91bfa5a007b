"""`celebdit resume`: continue a run on Kubeflow Pipelines that failed or was cancelled."""

import click

from components.errors import EXIT_OK
from pipeline.commands.help import example
from pipeline.commands.options import json_option, kubeflow_options, print_json, print_line, wait_option


@click.command(epilog=example("celebdit resume 0f3c6b1e-8f6a-4a57-9d0e-2a4f6c1d9b11 --wait"))
@click.argument("run_id", metavar="RUN")
@kubeflow_options
@wait_option
@json_option
def resume(run_id: str, endpoint: str | None, namespace: str | None, wait: bool, as_json: bool) -> int:
    """Resume RUN after an eviction, a failure or a cancellation. RUN is a run id as `celebdit runs` prints it.

    Finished steps are kept, and training continues from its last checkpoint.
    """
    from pipeline.commands.follow import connect, follow_to_end
    from pipeline.submit import resume as resume_run

    kubeflow = connect(endpoint, namespace)
    submission = resume_run(run_id, kubeflow)
    if submission.is_new:
        print_line(f"the server cannot retry this run; started {submission.name}, which reuses its finished steps")
    else:
        print_line(f"{submission.name}: {submission.state.lower()}")
    print_line(f"  run          {submission.url}")
    if wait:
        return follow_to_end(kubeflow, submission.run_id, submission.facts, as_json=as_json, resumed=True)
    if as_json:
        print_json({**submission.facts, "state": submission.state})
    return EXIT_OK
