"""`celebdit import-checkpoint`: the published checkpoint as a model version of ours."""

from pathlib import Path

import click

from components.environment import MODEL
from pipeline.commands.options import command_name, home_option, json_option, print_json, say, say_where
from pipeline.session import new_run_id, open_session


@click.command(name="import-checkpoint")
@click.argument("path", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--model", "name", default="celebdit", show_default=True, envvar=MODEL, help="Name of the registered model.")
@click.option(
    "--licence", default="unspecified", show_default=True, help="Terms under which the weights may be used; kept with the version."
)
@home_option
@json_option
def import_checkpoint(path: Path, name: str, licence: str, home: Path, as_json: bool) -> None:
    """Register the weights in PATH, the published file dit_final_12_f_250.pth, as a version that can be sampled.

    The file is read without running anything in it, every name and shape is checked, and the weights are stored as safetensors.
    """
    from components.weights.published_checkpoint import import_published, read_published

    source = read_published(path)
    say(f"{path.name}: all {len(source.tensors)} tensors are those of the published network")
    with open_session(home) as session:
        context = session.context(session.environment(run_id=new_run_id("import"), preset="imported"))
        done = import_published(source, name, licence, context)
    say(f"checkpoint {done.checkpoint_digest[:12]} is {done.uri}")
    say(f"{name} version {done.version}" + ("" if done.new else " was made from this file before, nothing to do"))
    say_where(done.run_url, embedded=session.services is not None)
    say(f"to look: {command_name()} models list --model {name}")
    if as_json:
        print_json(
            {
                "model": name,
                "version": done.version,
                "new": done.new,
                "run_key": done.run_key,
                "source_sha256": done.source_sha256,
                "tensors": done.num_tensors,
                "parameters": done.num_parameters,
                "checkpoint": {"digest": done.checkpoint_digest, "uri": str(done.uri)},
                "mlflow": done.run_url,
            }
        )
