"""`celebdit weights`: put the weights of the metrics' networks into the store, where every run finds them by their sha256."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from components.errors import BadInput
from pipeline.commands.help import example
from pipeline.commands.options import home_option, json_option, print_json, print_line
from pipeline.session import new_run_id, open_session

if TYPE_CHECKING:
    from components.storage import ObjectStore, StoreUri


@click.group(epilog=example("celebdit weights add weights-inception-2015-12-05-6726825d.pth"))
def weights() -> None:
    """Add weights of the metrics' networks to the store."""


@weights.command(epilog=example("celebdit weights add weights-inception-2015-12-05-6726825d.pth"))
@click.argument("path", type=click.Path(dir_okay=False, path_type=Path))
@home_option
@json_option
def add(path: Path, home: Path, as_json: bool) -> None:
    """Put the weights in PATH into the store under their sha256, for the presets and configurations that name it.

    Nothing in the file is executed. The store is that of CELEBDIT_STORE, on a cluster the one of its pods, else the embedded one.
    """
    from components.errors import DataRefused
    from components.preflight.metric_weights import UnknownPickle, network_of, tensor_shapes
    from components.storage import file_sha256

    if not path.is_file():
        raise BadInput(f"{path} does not exist or is no file", hint="name the file with the weights")
    try:
        network = network_of(tensor_shapes(path))
    except UnknownPickle:
        network = None
    except DataRefused as error:
        raise DataRefused(f"{path} {error.message}", hint="download it again") from error
    sha256 = file_sha256(path)
    with open_session(home) as session:
        context = session.context(session.environment(run_id=new_run_id("weights"), preset="weights"))
        uri = context.layout.metric_weights(sha256)
        if new := not _is_stored(context.store, uri, sha256):
            if context.store.put_file(uri, path) != sha256:
                context.store.delete(uri)
                raise DataRefused(f"{path} changed while it was read", hint="wait until it is complete, and add it again")
            context.store.check(uri, sha256)
    print_line(f"{path.name}: {network or 'a network that is not known here'}, sha256 {sha256}")
    print_line(f"  {'stored as' if new else 'was there already:'} {uri}")
    setting = "vgg_weights_sha256" if network == "vgg16" else "weights_sha256"
    print_line(f"  next         evaluation.{setting}={sha256}, which the presets celebahq256-* have for Inception")
    if as_json:
        print_json({"sha256": sha256, "network": network, "uri": str(uri), "new": new})


def _is_stored(store: "ObjectStore", uri: "StoreUri", sha256: str) -> bool:
    """Return whether the object at `uri` has the digest; a damaged one is replaced by the file."""
    from components.storage import DigestMismatch, ObjectMissing

    try:
        store.check(uri, sha256)
    except (ObjectMissing, DigestMismatch):
        return False
    return True
