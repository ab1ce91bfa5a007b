"""`celebdit import-checkpoint`: register the published checkpoint as a model version."""

from pathlib import Path

import click

from components.environment import MODEL
from pipeline.commands.help import example
from pipeline.commands.options import check_model, home_option, json_option, next_command, print_json, print_line, print_mlflow_url
from pipeline.session import new_run_id, open_session


@click.command(
    name="import-checkpoint", epilog=example('celebdit import-checkpoint dit_final_12_f_250.pth --license "non-commercial research"')
)
@click.argument("path", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--model", "name", default="celebdit", show_default=True, envvar=MODEL, callback=check_model, help="Name of the registered model."
)
@click.option("--license", "licence", default="unspecified", show_default=True, help="Licence of the weights; stored with the version.")
@home_option
@json_option
def import_checkpoint(path: Path, name: str, licence: str, home: Path, as_json: bool) -> None:
    """Register the weights in PATH, the published file dit_final_12_f_250.pth, as a model version that can be sampled.

    No code in the file is executed. Every tensor name and shape is checked, and the weights are stored as safetensors.
    """
    from components.weights.published_checkpoint import import_published, read_published

    source = read_published(path)
    print_line(f"{path.name}: all {len(source.tensors)} tensors match the published network")
    with open_session(home) as session:
        context = session.context(session.environment(run_id=new_run_id("import"), preset="imported"))
        imported = import_published(source, name, licence, context)
    print_line(f"checkpoint {imported.checkpoint_digest[:12]} is {imported.uri}")
    print_line(f"{name} version {imported.version}" + ("" if imported.new else " was imported from this file before, nothing to do"))
    print_mlflow_url(session.link(imported.run_url), embedded=session.services is not None)
    print_line(f"next: {next_command(f'models list --model {name}')}")
    if as_json:
        print_json(
            {
                "model": name,
                "version": imported.version,
                "new": imported.new,
                "run_key": imported.run_key,
                "source_sha256": imported.source_sha256,
                "tensors": imported.num_tensors,
                "parameters": imported.num_parameters,
                "checkpoint": {"digest": imported.checkpoint_digest, "uri": str(imported.uri)},
                "mlflow": imported.run_url,
            }
        )
