"""`celebdit doctor`: what a first run would trip over."""

from pathlib import Path

import click

from components.errors import EXIT_OK, BadInput
from components.settings import CommandSettings
from pipeline.commands.options import home_option, json_option, kubeflow_options, print_json, say

_MARKS = {"ok": "ok     ", "fail": "FAIL   ", "unknown": "unknown"}


@click.command()
@click.argument("overrides", nargs=-1)
@click.option("--cluster", "of_cluster", is_flag=True, help="Check the cluster that kubectl and --endpoint point at.")
@click.option("--preset", default="demo", show_default=True, help="The preset whose needs are checked.")
@click.option("--kube-context", metavar="NAME", help="Another context of your kubeconfig than the current one.")
@click.option("--images", type=click.Path(dir_okay=False, path_type=Path), default=Path("images.lock.json"), show_default=True)
@kubeflow_options
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
    home: Path,
    as_json: bool,
) -> int:
    """Check what a first run trips over, one line per check, with what to do about it.

    OVERRIDES are written section.key=value. Without --cluster, this machine is checked. Nothing is changed.
    """
    from pipeline.config import load_config
    from pipeline.doctor import check_cluster, check_machine

    config = load_config(preset, overrides)
    if of_cluster:
        from components.kube.client import Cluster
        from pipeline.images import read_lock
        from pipeline.kubeflow import KfpAddress, Kubeflow, Patience

        kubeflow = Kubeflow(KfpAddress.find(endpoint, namespace), Patience(deadline_s=5.0))
        cluster = Cluster.connect(namespace=namespace or "kubeflow", context=kube_context, deadline_s=5.0)
        checks = check_cluster(kubeflow, cluster, lambda: read_lock(images).images, config)
    else:
        checks = check_machine(home, CommandSettings.from_environment())
    for check in checks:
        say(f"{_MARKS[check.state]}  {check.name:<11} {check.found}")
        if check.fix is not None:
            say(f"{'':<21} -> {check.fix}")
    if as_json:
        print_json({"checks": [vars(check) for check in checks]})
    failed = [check.name for check in checks if check.state == "fail"]
    if not failed:
        say(
            "nothing stands in the way"
            if all(check.state == "ok" for check in checks)
            else "nothing that can be seen from here stands in the way"
        )
        return EXIT_OK
    say(f"{len(failed)} check(s) failed: {', '.join(dict.fromkeys(failed))}")
    return BadInput.exit_code
