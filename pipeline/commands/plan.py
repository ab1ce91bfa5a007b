"""`celebdit plan`: what a run would do, why, and what it would cost; nothing is started or written."""

import shlex
from pathlib import Path

import click

from components.command_settings import CommandSettings
from pipeline.commands.help import example
from pipeline.commands.options import home_option, json_option, license_option, next_command, print_json, print_line
from pipeline.commands.run import demo_archive
from pipeline.config import load_config


@click.command(epilog=example("celebdit plan celebahq256-b resources.price_per_device_hour=2.5"))
@click.argument("preset")
@click.argument("overrides", nargs=-1)
@license_option
@home_option
@json_option
def plan(preset: str, overrides: tuple[str, ...], accepted_by: str | None, home: Path, as_json: bool) -> None:
    """Show what a run of PRESET (a preset's name or a TOML file) would do and cost, without starting it.

    For each step: reuse what an earlier run has finished, continue it, or run, and why; then the hours on common devices, memory and
    storage, and what is not known. OVERRIDES have the form section.key=value.
    """
    from pipeline.planning.plan import make_plan

    changes = {} if accepted_by is None else {"data.licence_accepted_by": accepted_by}
    words = ["run", preset, *overrides] if accepted_by is None else ["run", preset, *overrides, "--accept-license", accepted_by]
    if preset == "demo" and not any(override.startswith("data.source") for override in overrides):
        words = ["demo", *overrides]  # its generated faces have no licence to accept
        if demo_archive(home).exists():  # what `celebdit demo` trains on; it generates it if it is missing
            changes["data.source"] = str(demo_archive(home).absolute())
    config = load_config(preset, overrides, changes=changes)
    start = next_command(shlex.join(words))
    planned = make_plan(config, home=home, settings=CommandSettings.from_environment(), title=Path(preset).stem, command=start)
    if as_json:
        print_json(planned.json())
        return
    for line in planned.lines():
        print_line(line)
