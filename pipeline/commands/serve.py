"""`celebdit serve`: serve a registered version over HTTP, on this machine or on Kubernetes."""

import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import click

from components.command_settings import CommandSettings
from components.deployment import CPU_IMAGE, GPU_IMAGE
from components.environment import MLFLOW, STORE
from components.errors import BadInput, TemporaryFailure
from components.registry.model_uri import ModelUri
from components.registry.promotions.moves import CHAMPION
from components.registry.tags import VersionTags
from components.runtime.context import StepContext
from components.system.ports import bindable_port
from components.system.work_folders import WorkFolder
from pipeline.commands.help import example
from pipeline.commands.options import home_option, json_option, print_json, print_line
from pipeline.session import open_session

if TYPE_CHECKING:
    from components.registry.client import ModelVersion
    from components.registry.version_files import ModelFiles

_POLL_S = 0.2
_UNREACHABLE = (
    "warning: the files are on the embedded S3 server of this machine, which pods do not reach: "
    f"set {STORE} and {MLFLOW} to the cluster's servers, or package the version as an image and name it with --oci"
)


@click.command(epilog=example("celebdit serve celebdit-demo@champion --port 8080"))
@click.argument("model")
@click.option("--port", default=8080, show_default=True, type=click.IntRange(1, 65535), help="Port on 127.0.0.1.")
@click.option("--kubernetes", is_flag=True, help="Copy the version to object storage and print a KServe manifest instead of serving.")
@click.option("--image", help=f"With --kubernetes: container image.  [default: {CPU_IMAGE}, with GPUs {GPU_IMAGE}]")
@click.option("--gpus", default=0, show_default=True, type=click.IntRange(0, 8), help="With --kubernetes: number of GPUs.")
@click.option(
    "--service-account", default="celebdit-serving", show_default=True, help="With --kubernetes: service account with the S3 credentials."
)
@click.option(
    "--oci",
    metavar="IMAGE",
    help="With --kubernetes: take the files from this image of `celebdit models package`; oci+native:// or oci+fetch:// may precede it.",
)
@home_option
@json_option
def serve(
    model: str,
    port: int,
    kubernetes: bool,
    image: str | None,
    gpus: int,
    service_account: str,
    oci: str | None,
    home: Path,
    as_json: bool,
) -> None:
    """Serve MODEL (NAME, NAME@alias or NAME/version) over HTTP until Ctrl-C. NAME alone is its champion."""
    name, version = _parse_model(model)
    location = None if oci is None else _oci_location(oci)
    if not kubernetes:
        if location is not None:
            raise BadInput("--oci works with --kubernetes alone", hint="leave it out: the version is downloaded from MLflow")
        _check_port(port)
    with ExitStack() as folders:
        with open_session(home) as session:
            from components.registry.client import Registry
            from components.serving.package import servable

            context = session.context()
            registry = Registry(context.tracking, name)
            model_version = registry.resolve(version)
            number = str(model_version.version)
            files = registry.files_of(number, context.scratch(WorkFolder.MODELS), verify_key=CommandSettings.from_environment().verify_key)
            if files.manifest_sha256 is None:
                print_line(f"version {number} of {name} was registered before versions had manifests: its weights are served, by this code")
            scratch = folders.enter_context(TemporaryDirectory(dir=context.scratch(WorkFolder.PACKAGED), ignore_cleanup_errors=True))
            files = servable(files, Path(scratch))
            if kubernetes:
                runs_in = image or (GPU_IMAGE if gpus else CPU_IMAGE)
                export = KubernetesExport(image=runs_in, gpus=gpus, service_account=service_account, location=location)
                if location is None and session.services is not None:
                    print_line(_UNREACHABLE)
                _export(files, model_version, export, context, as_json=as_json)
                return
        _serve_here(files, name, number, port, as_json=as_json)


@dataclass(frozen=True)
class KubernetesExport:
    """What an InferenceService runs in."""

    image: str
    gpus: int
    service_account: str
    location: str | None
    """Where the files are, if not in the store."""


def _oci_location(text: str) -> str:
    """Return the address of an image as KServe reads it."""
    from components.serving.oci_reference import ImageReference

    scheme, colon, rest = text.partition("://")
    if colon and scheme not in ("oci", "oci+native", "oci+fetch"):
        raise BadInput(f"--oci {text} is not the name of an image", hint="for example oci+native://registry.example/team/faces:3")
    return f"{scheme if colon else 'oci'}://{ImageReference.parse(rest if colon else text)}"


def _export(files: "ModelFiles", version: "ModelVersion", options: KubernetesExport, context: StepContext, *, as_json: bool) -> None:
    from components.serving.kserve import as_yaml, export, inference_service

    number, digest = str(version.version), str(files.manifest_sha256)
    target = options.location or str(export(files, context.store, context.layout.model(version.name, number, digest)))
    manifest = inference_service(
        version.name,
        version=number,
        location=target,
        image=options.image,
        gpus=options.gpus,
        service_account=options.service_account,
        checkpoint_digest=VersionTags.from_mlflow(version.tags).checkpoint_digest or "unknown",
        manifest_sha256=digest,
    )
    print_line(f"version {number} of {version.name} is at {target}; apply the manifest with: ... | kubectl apply -f -")
    if as_json:
        print_json(manifest)
    else:
        click.echo(as_yaml(manifest), nl=False)


def _serve_here(files: "ModelFiles", name: str, number: str, port: int, *, as_json: bool) -> None:
    from components.serving.local_server import MEMORY_HINT, serve_locally

    print_line(f"loading version {number} of {name} ...")
    with serve_locally(files, port=port) as (url, process):
        print_line(f"version {number} of {name} is served: look at {url}/, send requests to {url}/invocations; stop with Ctrl-C")
        print_line(f"  curl -s '{url}/image.png?seed=0' -o face.png")
        if as_json:
            print_json({"model": name, "version": number, "url": url})
        while process.poll() is None:
            time.sleep(_POLL_S)
        code = process.returncode
        raise TemporaryFailure(
            f"the server of version {number} of {name} ended with {f'signal {-code}' if code < 0 else f'exit code {code}'}",
            hint=MEMORY_HINT,
        )


def _parse_model(model: str) -> tuple[str, str]:
    uri = ModelUri.parse(model)
    if uri is None:
        raise BadInput(f"{model!r} is not a model", hint="use NAME, NAME@champion or NAME/3")
    return uri.name, uri.version or CHAMPION


def _check_port(port: int) -> None:
    try:
        bindable_port(port)
    except OSError as error:
        raise BadInput(f"port {port} of 127.0.0.1 cannot be used: {error.strerror}", hint="choose another with --port") from error
