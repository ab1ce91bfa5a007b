"""Ask before a run of hours is started: what it would do and cost, in short.

Promises: asks only a person, that is if stdin and stderr are terminals, and only about a run of more than an hour on one device; a script
is never asked and never waits. Starts nothing and writes nothing.
"""

import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from components.command_settings import CommandSettings
from components.errors import Interrupted
from pipeline.commands.options import next_command, print_line
from pipeline.config import RunConfig

F = TypeVar("F", bound=Callable[..., Any])
_FEWEST_PIXELS = 2e9
"""Fewer in all training images are not looked at: no network of a preset takes an hour for them."""
_LONG_HOURS = 1.0
_CPU_FLOPS = 5e10
"""Of one process, assumed: a plan would measure it, which takes too long here."""
_DEVICE = "H100"


def yes_option(function: F) -> F:
    """Add `--yes`."""
    return click.option("--yes", is_flag=True, help="Start a run of hours without asking; only a terminal is asked.")(function)


def ask_about_cost(config: RunConfig, preset: str, overrides: Sequence[str] = (), *, home: Path | None, yes: bool) -> None:
    """Show what a run of hours would cost and ask whether to start it, if a person is there to answer.

    Raises:
        Interrupted: if the answer is no.
    """
    if yes or not is_person_there() or pixels_of(config) < _FEWEST_PIXELS:
        return
    lines: list[str] = []
    if config.resources.device == "cpu":
        hours = _hours_on_cpus(config)
    else:
        hours, lines = _plan(config, preset, home)
    if hours < _LONG_HOURS:
        return
    for line in lines:
        print_line(line)
    print_line(f"  this run takes about {hours:.3g} h; all of it: {next_command(shlex.join(['plan', preset, *overrides]), 'accepted_by')}")
    if not click.confirm("Start it?", err=True):
        raise Interrupted("nothing was started", hint="start it without a question: --yes")


def is_person_there() -> bool:
    """Return whether a question can be seen and answered."""
    return sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty()


def pixels_of(config: RunConfig) -> float:
    """Return the pixels of all images that are trained on, counted as often as they are."""
    return float(config.training.total_steps) * config.training.batch_images * config.network.image_px**2


def _plan(config: RunConfig, preset: str, home: Path | None) -> tuple[float, list[str]]:
    """Return the hours that are left on the GPUs of the configuration, assumed to be of one kind, and the plan in short."""
    from pipeline.planning.plan import make_plan

    plan = make_plan(config, home=home or Path("nowhere"), settings=CommandSettings.from_environment(), title=Path(preset).stem, command="")
    device = next(device for device in plan.costs.devices if device.name.startswith(_DEVICE))
    return device.training_hours + device.evaluation_hours, plan.short_lines(device)


def _hours_on_cpus(config: RunConfig) -> float:
    from model.flops import forward_flops, passes_per_image

    passes = passes_per_image(distilled=config.distill.teacher is not None)
    flops = passes * forward_flops(config.network) * config.training.total_steps * config.training.batch_images
    return flops / (_CPU_FLOPS * config.resources.num_ranks) / 3600
