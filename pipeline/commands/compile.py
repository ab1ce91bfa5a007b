"""`celebdit compile`: write the pipeline as KFP YAML."""

import shlex
from pathlib import Path

import click

from components.errors import BadInput
from components.process_settings import step_log_level
from pipeline.commands.help import example
from pipeline.commands.options import OutputPath, cluster_options, debug_option, json_option, next_cluster_command, print_json, print_line


@click.command(epilog=example("celebdit compile celebahq256-b --output pipeline.yaml"))
@click.argument("preset")
@click.argument("overrides", nargs=-1)
@click.option("--also", metavar="PRESET", multiple=True, help="Offer this preset in the form, too; repeat for several. Needs KFP 2.17.")
@click.option("-o", "--output", type=OutputPath(), required=True, help="The YAML file to write.")
@cluster_options
@debug_option
@json_option
def compile_command(
    preset: str,
    overrides: tuple[str, ...],
    also: tuple[str, ...],
    output: Path,
    images: Path,
    cached: tuple[str, ...],
    paused: tuple[str, ...],
    as_json: bool,
) -> None:
    """Compile the pipeline for PRESET, a preset's name or a TOML file, to KFP YAML.

    OVERRIDES have the form section.key=value. The form in the KFP UI takes more of them, and the acceptance of the licence. Container
    images are referenced by the digests that `make images` wrote.
    """
    from pipeline.compile import CompileOptions, compile_pipeline
    from pipeline.config import load_config
    from pipeline.images import read_lock

    config = load_config(preset, overrides)
    if output.suffix not in (".yaml", ".yml"):
        raise BadInput(f"--output {output} must end in .yaml")
    if not output.absolute().parent.is_dir():
        raise BadInput(f"--output {output} cannot be written: {output.absolute().parent} is not a folder")
    others = {Path(name).stem: load_config(name, overrides) for name in also}
    options = CompileOptions(
        images=read_lock(images).images,
        preset=Path(preset).stem,
        cached=cached,
        others=others,
        log_level=step_log_level(),
        paused=paused,
    )
    try:
        digest = compile_pipeline(config, output, options)
    except OSError as error:
        raise BadInput(f"--output {output} cannot be written: {error.strerror}") from error
    print_line(f"wrote {output}, sha256 {digest[:12]}")
    following = next_cluster_command(shlex.join(["submit", preset, *overrides]), "images", "cached", "paused")
    print_line(f"  next         {following}, or upload the file in the KFP UI")
    if as_json:
        print_json({"file": str(output), "sha256": digest, "config_digest": config.digest()})
