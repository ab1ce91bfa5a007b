"""Shared by the commands for Kubeflow Pipelines: connect to the server, and follow a run to its end."""

from components.errors import EXIT_OK, GateFailed
from pipeline.commands.commands_in_hints import open_view
from pipeline.commands.options import next_cluster_command, print_json, print_line
from pipeline.follow import failure_of, follow, steps_of
from pipeline.kubeflow import KfpAddress, Kubeflow, Patience
from pipeline.submit import SubmissionFacts
from pipeline.waiting_pods import WaitingPods, find_cluster

_FIRST_ANSWER_S = 5.0


def connect(endpoint: str | None, namespace: str | None) -> Kubeflow:
    """Connect to the server that the options or the environment name, and check that it answers."""
    return connect_to(KfpAddress.find(endpoint, namespace))


def connect_to(address: KfpAddress) -> Kubeflow:
    """Connect to the server at `address` and check that it answers.

    A wrong address fails within seconds; requests after that are retried while the server is unavailable.
    """
    Kubeflow(address, Patience(deadline_s=_FIRST_ANSWER_S)).multi_user()
    return Kubeflow(address)


def follow_to_end(kubeflow: Kubeflow, run_id: str, facts: SubmissionFacts | dict[str, str], *, as_json: bool, resumed: bool = False) -> int:
    """Show a run until it ends and return the exit code of its outcome.

    Raises:
        CelebditError: of the same kind as the error of the failed step.
    """
    try:
        with open_view() as view:
            cluster = find_cluster(kubeflow.address.namespace)
            report = WaitingPods(cluster, run_id, view).report if cluster is not None else lambda: None
            run = follow(run_id, kubeflow, on_event=view, on_poll=report, command=next_cluster_command, resumed=resumed)
    except KeyboardInterrupt:
        print_line(f"stopped waiting; the run continues: {next_cluster_command(f'runs {run_id}')}")
        raise
    failure = failure_of(run, command=next_cluster_command)
    if failure is not None and not isinstance(failure, GateFailed):
        raise failure
    print_line(f"  outcome      {'registered' if failure is None else failure.message}")
    print_line(f"  run          {kubeflow.run_url(run_id)}")
    if as_json:
        steps = {name: str(task.state) for name, task in steps_of(run).items()}
        print_json({**facts, "state": str(run.state), "gate": "pass" if failure is None else "fail", "steps": steps})
    return EXIT_OK if failure is None else GateFailed.exit_code
