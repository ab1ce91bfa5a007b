"""`celebdit config`: show presets and resolved configurations."""

import click

from pipeline.commands.help import example
from pipeline.commands.options import json_option, print_json, print_line
from pipeline.config import load_config
from pipeline.config_files import preset_names, preset_summary


@click.group(epilog=example("celebdit config show demo"))
def config() -> None:
    """Show presets and resolved configurations."""


@config.command(
    short_help="Print a resolved configuration.", epilog=example("celebdit config show demo training.total_steps=200 > my-run.toml")
)
@click.argument("preset")
@click.argument("overrides", nargs=-1)
@json_option
def show(preset: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Print the resolved configuration of PRESET (a preset's name or a TOML file): defaults, preset and OVERRIDES.

    The output is a TOML file that `celebdit run` accepts.
    """
    resolved = load_config(preset, overrides)
    if as_json:
        print_json({"digest": resolved.digest(), "config": resolved.model_dump(mode="json")})
        return
    click.echo(resolved.toml())
    print_line(f"digest {resolved.digest()}")


@config.command(epilog=example("celebdit config presets"))
@json_option
def presets(as_json: bool) -> None:
    """List the presets: what each is for, how large its network is, and how long a run takes."""
    summaries = {name: preset_summary(name) for name in preset_names()}
    if as_json:
        print_json({"presets": list(summaries), "summaries": {name: " ".join(lines) for name, lines in summaries.items()}})
        return
    width = max(map(len, summaries))
    for name, (first, *further) in summaries.items():
        click.echo(f"{name:<{width}}  {first}")
        for line in further:
            click.echo(f"{'':<{width}}  {line}")
