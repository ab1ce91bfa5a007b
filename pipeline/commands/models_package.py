"""`celebdit models package`: write a version as an OCI image in ModelCar's layout, for clusters whose pods do not reach S3."""

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from components.command_settings import CommandSettings
from components.environment import MODEL
from components.errors import BadInput
from components.system.own_folder import own_folder
from components.system.work_folders import WorkFolder
from pipeline.commands.help import example
from pipeline.commands.options import OutputPath, check_model, home_option, json_option, next_command, print_json, print_line
from pipeline.session import open_session

if TYPE_CHECKING:
    from components.registry.version_files import ModelFiles
    from components.serving.oci_image import OciImage
    from components.serving.oci_reference import ImageReference


@click.command(
    short_help="Write a version as an OCI image.",
    epilog=example("celebdit models package champion --model celebdit-demo --oci registry.example/team/faces"),
)
@click.argument("version")
@click.option("--oci", metavar="REGISTRY/NAME", help="Push the image there; without a tag the tag is the version's number.")
@click.option(
    "--out",
    metavar="FOLDER",
    type=OutputPath(),
    help="Write it as an OCI layout into this new folder; one that holds it already is left as it is.",
)
@click.option("--base", metavar="IMAGE", help="With --oci: image of the same registry to build on, which KServe's oci:// needs.")
@click.option("--model", "name", default="celebdit", show_default=True, envvar=MODEL, callback=check_model, help="Name of the model.")
@home_option
@json_option
def package(version: str, oci: str | None, out: Path | None, base: str | None, name: str, home: Path, as_json: bool) -> None:
    """Write VERSION (a number or an alias) as an OCI image: one layer with safetensors and code below /models.

    Every file is verified first, as by `celebdit serve`. No container engine is used. The same version gives the same digest. The login for
    the registry is that of podman or docker.
    """
    from components.serving.oci_reference import ImageReference

    if oci is None and out is None:
        raise BadInput("nowhere to write the image", hint="give --oci REGISTRY/NAME to push it, or --out FOLDER")
    if base is not None and (oci is None or out is not None):
        raise BadInput("--base works with --oci alone: its layers stay in the registry", hint="leave out --base for --out")
    target = None if oci is None else ImageReference.parse(oci, default_tag="")
    if target is not None and target.is_digest:
        raise BadInput(f"--oci {oci} has a digest, which follows from the content", hint="name a tag, or none")
    foundation = None if base is None else ImageReference.parse(base)
    if target is not None and foundation is not None and foundation.host != target.host:
        raise BadInput(f"--base {base} is in another registry than --oci {oci}", hint=f"push it to {target.host} first")
    with ExitStack() as stack:
        session = stack.enter_context(open_session(home))
        from components.registry.client import Registry
        from components.serving.package import servable

        context = session.context()
        registry = Registry(context.tracking, name)
        number = str(registry.resolve(version).version)
        scratch = stack.enter_context(own_folder(context.scratch(WorkFolder.PACKAGED), f"{name}-{number}"))
        key = CommandSettings.from_environment().verify_key
        files = servable(registry.files_of(number, context.scratch(WorkFolder.MODELS), verify_key=key), scratch)
        image = _build(files, name, number, scratch, foundation)
        print_line(f"version {number} of {name}: {len(image.manifest)} bytes of manifest, a layer of {image.size_bytes / 2**20:.1f} MiB")
        if out is not None:
            from components.serving.oci_image import write_layout

            is_new = write_layout(image, out, tag=number)
            print_line(f"  layout       {out}, {image.digest}{'' if is_new else ', written before'}")
        if target is not None:
            pushed = _push(image, target if target.reference else ImageReference(target.host, target.repository, number))
            print_line(f"  pushed       {pushed}")
            scheme = "oci+native" if base is None else "oci"  # KServe's oci:// needs a shell in the image
            print_line(f"  next         {next_command(f'serve {name}/{number} --kubernetes --oci {scheme}://{pushed}')}")
    if as_json:
        facts = {"model": name, "version": number, "manifest_sha256": files.manifest_sha256, "digest": image.digest}
        print_json({**facts, "layer": image.layer_digest, "image": pushed if target else None, "folder": str(out) if out else None})


def _build(files: "ModelFiles", name: str, number: str, scratch: Path, base: "ImageReference | None") -> "OciImage":
    from components.serving.oci_image import write_image
    from components.serving.oci_reference import find_login
    from components.serving.oci_registry import ImageRegistry

    annotations = {
        "org.opencontainers.image.title": name,
        "org.opencontainers.image.version": number,
        "org.opencontainers.image.licenses": files.description.licence,
        "celebdit.io/manifest-sha256": str(files.manifest_sha256),
        "celebdit.io/checkpoint-digest": files.description.checkpoint_digest,
    }
    settings = CommandSettings.from_environment()
    foundation = None if base is None else ImageRegistry(base, find_login(base.host, settings)).base()
    return write_image(files, scratch / "layer.tar", annotations, foundation)


def _push(image: "OciImage", target: "ImageReference") -> str:
    from components.serving.oci_reference import find_login
    from components.serving.oci_registry import ImageRegistry

    ImageRegistry(target, find_login(target.host, CommandSettings.from_environment())).push(image)
    return target.at(image.digest)
