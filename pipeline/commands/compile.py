"""`celebdit compile`: the pipeline as KFP YAML."""

from pathlib import Path

import click

from components.errors import BadInput
from pipeline.commands.options import say


@click.command()
@click.argument("preset")
@click.argument("overrides", nargs=-1)
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), required=True, help="The YAML file to write.")
def compile_command(preset: str, overrides: tuple[str, ...], output: Path) -> None:
    """Write the pipeline for PRESET (a preset's name or a TOML file) as KFP YAML.

    OVERRIDES are written section.key=value.
    """
    from pipeline.compile import Images, compile_pipeline
    from pipeline.config import load_config

    config = load_config(preset, overrides)
    if output.suffix not in (".yaml", ".yml"):
        raise BadInput(f"--output {output} must end in .yaml")
    try:
        compile_pipeline(config, output, images=Images(), preset=Path(preset).stem)
    except OSError as error:
        raise BadInput(f"--output {output} cannot be written: {error.strerror}") from error
    say(f"wrote {output}")
