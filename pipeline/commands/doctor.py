"""`celebdit doctor`: check the prerequisites of a run."""

from pathlib import Path

import click

from components.command_settings import CommandSettings
from components.errors import EXIT_OK, BadInput
from components.reports.plural import plural
from pipeline.commands.commands_in_hints import complete_commands
from pipeline.commands.help import example
from pipeline.commands.options import home_option, json_option, kubeflow_options, license_option, print_json, print_line

_MARKS = {"ok": "ok     ", "fail": "FAIL   ", "unknown": "unknown"}


@click.command(epilog=example("celebdit doctor --cluster --preset celebahq256-b"))
@click.argument("overrides", nargs=-1)
@click.option("--cluster", "of_cluster", is_flag=True, help="Check the cluster of kubectl and --endpoint instead of this machine.")
@click.option("--preset", default="demo", show_default=True, help="Preset whose requirements are checked.")
@click.option("--kube-context", metavar="NAME", help="Context of the kubeconfig.  [default: the current one]")
@click.option(
    "--images",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("images.lock.json"),
    show_default=True,
    help="Image lock file that `make images` wrote.",
)
@kubeflow_options
@license_option
@home_option
@json_option
def doctor(
    overrides: tuple[str, ...],
    of_cluster: bool,
    preset: str,
    kube_context: str | None,
    images: Path,
    endpoint: str | None,
    namespace: str | None,
    accepted_by: str | None,
    home: Path,
    as_json: bool,
) -> int:
    """Check the prerequisites of a run, on this machine or on the cluster, and print the remedy for each problem.

    What a check creates on a server, it deletes. OVERRIDES have the form section.key=value. Exits with 2 if a check fails.
    """
    from pipeline.config import load_config
    from pipeline.doctor import check_cluster, check_machine

    config = load_config(preset, overrides, changes={} if accepted_by is None else {"data.licence_accepted_by": accepted_by})
    if of_cluster:
        from components.kube.client import Cluster
        from pipeline.images import read_lock
        from pipeline.kubeflow import KfpAddress, Kubeflow, Patience

        of_steps = namespace or CommandSettings.from_environment().kfp_namespace or "kubeflow"

        checks = check_cluster(
            lambda: Kubeflow(KfpAddress.find(endpoint, namespace), Patience(deadline_s=5.0)),
            lambda: Cluster.connect(namespace=of_steps, context=kube_context, deadline_s=5.0),
            lambda: read_lock(images).images,
            config,
        )
    else:
        checks = check_machine(home, CommandSettings.from_environment(), config)
    for check in checks:
        print_line(f"{_MARKS[check.state]}  {check.name:<11} {check.found}")
        if check.fix is not None:
            print_line(f"{'':<21} -> {complete_commands(check.fix)}")
    if as_json:
        print_json({"checks": [vars(check) for check in checks]})
    failed = [check.name for check in checks if check.state == "fail"]
    if not failed:
        print_line(
            "no problems found"
            if all(check.state == "ok" for check in checks)
            else "no problems found; checks marked 'unknown' could not be run from here"
        )
        return EXIT_OK
    print_line(f"{plural(len(failed), 'check')} failed: {', '.join(dict.fromkeys(failed))}")
    return BadInput.exit_code
