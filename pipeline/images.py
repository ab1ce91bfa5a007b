"""Build the two container images and read their lock file. Command line: `python -m pipeline.images`.

Promises: the lock references every image by digest, with the commit and the pinned requirements it was built from; docker, podman and
buildah build the same images; package index and registry are options, never constants.
"""

import hashlib
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import click
from pydantic import Field, ValidationError

from components.deployment import CPU_IMAGE, GPU_IMAGE
from components.errors import BadInput, CelebditError, TemporaryFailure
from components.validation import describe
from model.frozen_config import FrozenConfig, TextForm
from pipeline.commands.help import example
from pipeline.session import git_commit

LOCK_FILE = Path("images.lock.json")
ENGINES = ("podman", "buildah", "docker")
ImageDigest = Annotated[
    str, TextForm(r"[^@\s]+@sha256:[0-9a-f]{64}", example="registry.example/celebdit-cpu@sha256:" + 4 * "0123456789abcdef")
]
_PINS = {"cpu": "requirements/cpu.txt", "gpu": "requirements/run.txt"}


class Images(FrozenConfig):
    """References of the pipeline's images, by digest."""

    cpu: ImageDigest = Field(description="for the steps without torch")
    gpu: ImageDigest = Field(description="for train and evaluate")


class ImagesLock(FrozenConfig):
    """Content of the lock file that `make images` writes."""

    images: Images
    git_commit: str
    pins_sha256: dict[str, str]
    """sha256 of the requirements file that each image was built from."""


def read_lock(path: Path) -> ImagesLock:
    """Read the lock file at `path`.

    Raises:
        BadInput: if it does not exist, is invalid, or references an image without a digest.
    """
    try:
        return ImagesLock.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise BadInput(
            f"image lock file {path} not found",
            hint="build the images (`make images`, docs/kubernetes.md), or give the path with --images",
        ) from error
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        raise BadInput(
            f"{path}: {describe(error, section='lock')}", hint="images are referenced by digest, name@sha256:...: build and push them again"
        ) from error


@dataclass(frozen=True)
class Build:
    """Parameters of one image build."""

    target: str
    name: str
    base_image: str
    arguments: Mapping[str, str]
    options: Sequence[str] = ()

    def command(self, engine: str) -> list[str]:
        """Return the command that builds the image from the current folder."""
        build_arguments = {"BASE_IMAGE": self.base_image, **self.arguments}
        return [
            engine,
            "build",
            *([] if engine == "docker" else ["--layers"]),  # what both images have is stored, pushed and pulled once
            *self.options,
            *(part for key, value in build_arguments.items() for part in ("--build-arg", f"{key}={value}")),
            "--target",
            self.target,
            "--tag",
            self.name,
            "--file",
            "docker/Dockerfile",
            ".",
        ]


def working_engine(name: str | None) -> str:
    """Return the engine called `name`, or the first that works on this machine.

    Raises:
        BadInput: if it does not work, or none does.
    """
    for engine in (name,) if name else ENGINES:
        if shutil.which(engine) and subprocess.run([engine, "info"], capture_output=True, check=False).returncode == 0:
            return engine
    raise BadInput(f"no working container engine (tried {name or ', '.join(ENGINES)})", hint="install podman, or start the docker daemon")


def push_image(engine: str, name: str) -> str:
    """Push image `name` and return its reference by the digest in the registry."""
    repository = _repository(name)
    if engine == "docker":
        _run([engine, "push", "--quiet", name])
        return f"{repository}@{_docker_digest(name)}"
    with tempfile.TemporaryDirectory() as folder:
        digest = Path(folder) / "digest"
        _run([engine, "push", "--digestfile", str(digest), name])
        return f"{repository}@{digest.read_text().strip()}"


def local_digest(engine: str, name: str) -> str:
    """Return the reference of image `name` by its digest on this machine.

    Raises:
        BadInput: if it has no digest before it is pushed, as with docker's classic image store.
    """
    if engine == "docker":
        return f"{_repository(name)}@{_docker_digest(name)}"
    command = [engine, "images", "--digests", "--format", "{{.Digest}}", name]
    return f"{_repository(name)}@{_run(command, capture=True).splitlines()[0].strip()}"


def build_images(
    *, engine: str, base_image: str, registry: str | None, push: bool, indexes: Mapping[str, str], options: Sequence[str]
) -> ImagesLock:
    """Build both images from the current folder and return their lock."""
    commit = git_commit() or "unknown"
    pins = {target: hashlib.sha256(Path(path).read_bytes()).hexdigest() for target, path in _PINS.items()}
    references = {}
    for target, local_name in (("cpu", CPU_IMAGE), ("gpu", GPU_IMAGE)):
        name = (
            f"{registry.rstrip('/')}/celebdit-{target}:{commit[:12]}{'-dirty' if commit.endswith('-dirty') else ''}"
            if registry
            else local_name
        )
        arguments = {**indexes, "GIT_COMMIT": commit, "LOCK_SHA256": pins[target]}
        click.echo(f"building {name} with {engine}", err=True)
        _run(Build(target, name, base_image, arguments, options).command(engine))
        references[target] = push_image(engine, name) if push else local_digest(engine, name)
        if registry:
            _run([engine, "tag", name, local_name])
    return ImagesLock(images=Images(**references), git_commit=commit, pins_sha256=pins)


def _repository(name: str) -> str:
    head, _, tail = name.rpartition("/")
    return f"{head}/{tail.partition(':')[0]}" if head else tail.partition(":")[0]


def _docker_digest(name: str) -> str:
    digests = _run(["docker", "image", "inspect", "--format", '{{join .RepoDigests "\\n"}}', name], capture=True)
    if match := re.search(rf"^{re.escape(_repository(name))}@(sha256:[0-9a-f]{{64}})$", digests, re.MULTILINE):
        return match.group(1)
    raise BadInput(f"docker has no digest of {name} before it is pushed", hint="build with REGISTRY=... PUSH=1, or with podman")


def _run(command: Sequence[str], *, capture: bool = False) -> str:
    try:
        process = subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE if capture else None)
    except subprocess.CalledProcessError as error:
        raise TemporaryFailure(
            f"`{' '.join(command[:2])}` ended with status {error.returncode}", hint="see its output above, then run `make images` again"
        ) from error
    return process.stdout or ""


@click.command(
    epilog=example("python -m pipeline.images --base-image docker.io/library/python:3.11-slim --registry registry.example/team --push")
)
@click.option("--base-image", required=True, help="Debian or Ubuntu image with Python 3.11 or newer, preferably by digest.")
@click.option("--registry", help="Registry and path of the images, like registry.example/team.  [default: this machine only]")
@click.option("--push", is_flag=True, help="Push the images, so that a cluster can pull them.")
@click.option("--engine", type=click.Choice(ENGINES), help="Container engine.  [default: the first that works]")
@click.option("--pip-index", default="", help="Package index for pip.  [default: pip's]")
@click.option("--uv-index", default="", help="Package index for uv.  [default: uv's]")
@click.option(
    "--option", "options", multiple=True, help="Passed to the engine's build command, like --option=--network=host; repeat for several."
)
@click.option("--lock", type=click.Path(dir_okay=False, path_type=Path), default=LOCK_FILE, show_default=True, help="Lock file to write.")
def main(
    base_image: str,
    registry: str | None,
    push: bool,
    engine: str | None,
    pip_index: str,
    uv_index: str,
    options: tuple[str, ...],
    lock: Path,
) -> None:
    """Build both images from the current folder and write their digests to the lock file."""
    try:
        if push and registry is None:
            raise BadInput("--push needs --registry", hint="like --registry registry.example/team")
        indexes = {key: value for key, value in (("PIP_INDEX_URL", pip_index), ("UV_DEFAULT_INDEX", uv_index)) if value}
        images_lock = build_images(
            engine=working_engine(engine), base_image=base_image, registry=registry, push=push, indexes=indexes, options=options
        )
    except CelebditError as error:
        click.echo(f"images: {error.message}" + (f"\n  {error.hint}" if error.hint else ""), err=True)
        raise SystemExit(error.exit_code) from None
    lock.write_text(images_lock.model_dump_json(indent=2) + "\n")
    click.echo(f"wrote {lock}" + ("" if push else "; the images were not pushed and are only on this machine"), err=True)
    if push:
        _write_overlays(images_lock.images)


def _write_overlays(images: Images) -> None:
    """Write the digests of pushed images into the overlays of this checkout, and say what was written."""
    from pipeline.overlays import kustomizations, placeholders, write_digests  # noqa: PLC0415 - it imports this module

    for path in kustomizations():
        changed = write_digests(path, images)
        left = placeholders(path)
        click.echo(
            f"{'wrote the digests into' if changed else 'has these digests already:'} {path}"
            + (f"; set the digest of {', '.join(left)} yourself" if left else ""),
            err=True,
        )


if __name__ == "__main__":
    main()
