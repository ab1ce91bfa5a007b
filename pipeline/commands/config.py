"""`celebdit config`: what a run would be."""

import click

from pipeline.commands.options import json_option, print_json, say
from pipeline.config import load_config
from pipeline.config_files import preset_names


@click.group()
def config() -> None:
    """Show presets and resolved configurations."""


@config.command()
@click.argument("preset")
@click.argument("overrides", nargs=-1)
@json_option
def show(preset: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Print the configuration of PRESET (a preset's name or a TOML file) after OVERRIDES, with every default filled in.

    What is printed is a TOML file that `celebdit run` takes.
    """
    resolved = load_config(preset, overrides)
    if as_json:
        print_json({"digest": resolved.digest(), "config": resolved.model_dump(mode="json")})
        return
    click.echo(resolved.toml())
    say(f"digest {resolved.digest()}")


@config.command()
@json_option
def presets(as_json: bool) -> None:
    """List the presets."""
    if as_json:
        print_json({"presets": preset_names()})
        return
    for name in preset_names():
        click.echo(name)
