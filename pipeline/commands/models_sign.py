"""`celebdit models sign`: sign a version with a key in a file."""

from pathlib import Path

import click

from components.environment import MODEL, VERIFY_KEY
from components.system.work_folders import WorkFolder
from pipeline.commands.help import example
from pipeline.commands.options import check_model, home_option, json_option, next_command, print_json, print_line
from pipeline.session import open_session


@click.command(short_help="Sign a version.", epilog=example("celebdit models sign 3 --model celebdit-demo --key key.pem"))
@click.argument("version")
@click.option(
    "--key", metavar="FILE", required=True, type=click.Path(path_type=Path), help="Private key (PEM, of curve P-256, P-384 or P-521)."
)
@click.option("--model", "name", default="celebdit", show_default=True, envvar=MODEL, callback=check_model, help="Name of the model.")
@home_option
@json_option
def sign(version: str, key: Path, name: str, home: Path, as_json: bool) -> None:
    """Sign VERSION (a number or an alias): all its files, which are verified first. The signature is kept in object storage.

    With the public key in CELEBDIT_VERIFY_KEY, versions that its private key did not sign are refused by serve, sample, compare, evaluate
    --register, models package and models promote.
    """
    with open_session(home) as session:
        from components.registry.client import Registry

        context = session.context()
        registry = Registry(context.tracking, name)
        number = str(registry.resolve(version).version)
        signed = registry.sign(number, context.scratch(WorkFolder.MODELS), key)
    print_line(f"version {number} of {name} {'is signed' if signed.is_new else 'was signed before'} by key {signed.key_id}")
    print_line(f"  next         {VERIFY_KEY}=key.pub {next_command(f'serve {name}/{number}')}")
    if as_json:
        facts = {"model": name, "version": number, "manifest_sha256": signed.manifest_sha256}
        print_json({**facts, "key": signed.key_id, "new": signed.is_new})
