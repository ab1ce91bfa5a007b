"""`celebdit serve`: a registered version behind HTTP, here or on Kubernetes."""

import socket
import time
from pathlib import Path

import click

from components.deployment import CPU_IMAGE, GPU_IMAGE
from components.errors import BadInput
from components.registry.model_uri import ModelUri
from components.registry.promotions import CHAMPION
from components.registry.tags import VersionTags
from pipeline.commands.options import home_option, json_option, print_json, say
from pipeline.session import open_session

_POLL_S = 0.2


@click.command()
@click.argument("model")
@click.option("--port", default=8080, show_default=True, type=click.IntRange(1, 65535), help="Port on 127.0.0.1.")
@click.option("--kubernetes", is_flag=True, help="Serve nothing: copy the version to object storage and print a KServe manifest for it.")
@click.option("--image", help=f"With --kubernetes: the image.  [default: {CPU_IMAGE}, with GPUs {GPU_IMAGE}]")
@click.option("--gpus", default=0, show_default=True, type=click.IntRange(0, 8), help="With --kubernetes: GPUs of the server.")
@click.option("--service-account", default="celebdit-serving", show_default=True, help="With --kubernetes: brings the S3 credentials.")
@home_option
@json_option
def serve(model: str, port: int, kubernetes: bool, image: str | None, gpus: int, service_account: str, home: Path, as_json: bool) -> None:
    """Serve MODEL (NAME, NAME@alias or NAME/version; the champion if only a name is given) over HTTP until Ctrl-C."""
    name, version = _parsed(model)
    if not kubernetes:
        _check_port(port)
    with open_session(home) as session:
        from components.registry.client import Registry

        context = session.context()
        registry = Registry(context.tracking, name)
        found = registry.resolve(version)
        number = str(found.version)
        files = registry.files_of(number, context.scratch("models"))
        if kubernetes:
            from components.serving.kserve import as_yaml, export, inference_service

            target = context.layout.model(name, number)
            manifest = inference_service(
                name,
                version=number,
                location=export(files, context.store, target),
                image=image or (GPU_IMAGE if gpus else CPU_IMAGE),
                gpus=gpus,
                service_account=service_account,
                checkpoint_digest=VersionTags.from_mlflow(found.tags).checkpoint_digest or "unknown",
            )
            say(f"version {number} of {name} is at {target}; apply with: ... | kubectl apply -f -")
            if as_json:
                print_json(manifest)
            else:
                click.echo(as_yaml(manifest), nl=False)
            return
    _serve_here(files.folder, name, number, port, as_json=as_json)


def _serve_here(folder: Path, name: str, number: str, port: int, *, as_json: bool) -> None:
    from components.serving.package import serve_locally

    say(f"loading version {number} of {name} ...")
    with serve_locally(folder, port=port) as (url, process):
        say(f"version {number} of {name} answers at {url}/invocations; Ctrl-C ends it")
        question = '{"dataframe_records": [{"seed": 0}]}'
        say(f"  curl -s {url}/invocations -H 'Content-Type: application/json' -d '{question}'")
        if as_json:
            print_json({"model": name, "version": number, "url": url})
        while process.poll() is None:
            time.sleep(_POLL_S)


def _parsed(model: str) -> tuple[str, str]:
    uri = ModelUri.parse(model)
    if uri is None:
        raise BadInput(f"{model!r} is not a model", hint="write NAME, NAME@champion or NAME/3")
    return uri.name, uri.version or CHAMPION


def _check_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise BadInput(f"port {port} of 127.0.0.1 cannot be used: {error.strerror}", hint="choose another with --port") from error
