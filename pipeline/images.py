"""Build the two container images and read their lock file. Command line: `python -m pipeline.images`.

Promises: the lock references every image by digest, with the commit and the pinned requirements it was built from; docker, podman and
buildah build the same images; package index and registry are options, never constants.
"""

import hashlib
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import click
from pydantic import Field, ValidationError

from components.deployment import CPU_IMAGE, GPU_IMAGE
from components.errors import BadInput, CelebditError
from components.validation import describe
from model.frozen_config import FrozenConfig, TextForm
from pipeline.commands.help import example
from pipeline.image_engines import ENGINES, Build, local_digest, push_image, repository_of, run_engine, working_engine
from pipeline.image_inputs import context_sha256, pin_cpu_wheels
from pipeline.session import git_commit

LOCK_FILE = Path("images.lock.json")
ImageDigest = Annotated[
    str, TextForm(r"[^@\s]+@sha256:[0-9a-f]{64}", example="registry.example/celebdit-cpu@sha256:" + 4 * "0123456789abcdef")
]
_MOST_BYTES = 2**20
CPU_WHEELS_INDEX = "CPU_WHEELS_INDEX"
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
    context_sha256: str | None = None
    """Of everything that the images were built from; None in a lock of an earlier release."""


def read_lock(path: Path) -> ImagesLock:
    """Read the lock file at `path`.

    Raises:
        BadInput: if it does not exist, is invalid, or references an image without a digest.
    """
    try:
        with path.open("rb") as file:
            text = file.read(_MOST_BYTES + 1)  # not by its size: a device or a pipe has none
        if len(text) > _MOST_BYTES:
            raise BadInput(f"{path} is larger than {_MOST_BYTES} bytes, which no image lock file is", hint="give its path with --images")
        return ImagesLock.model_validate_json(text)
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
class Request:
    """What `make images` is asked for."""

    engine: str
    base_image: str
    registry: str | None = None
    push: bool = False
    compression: str | None = None
    indexes: Mapping[str, str] = field(default_factory=dict)
    """Build argument -> address of a package index."""
    options: Sequence[str] = ()

    @property
    def has_cpu_wheels(self) -> bool:
        """Whether torch of the cpu image comes from an index of wheels for CPUs."""
        return CPU_WHEELS_INDEX in self.indexes

    def context_sha256(self) -> str:
        """Return the digest of everything that the images would be built from."""
        return context_sha256(self.base_image, *(["wheels for CPUs"] if self.has_cpu_wheels else []))

    def is_met_by(self, lock: ImagesLock, *, commit: str) -> bool:
        """Return whether the images of `lock` are what a build would give now: they are here or, if they were pushed, in the registry."""
        if lock.context_sha256 != self.context_sha256() or (lock.git_commit.endswith("-dirty") and not commit.endswith("-dirty")):
            return False
        references = (lock.images.cpu, lock.images.gpu)
        prefix = f"{self.registry.rstrip('/')}/" if self.registry else repository_of(CPU_IMAGE).rpartition("/")[0] + "/"
        if not all(reference.rpartition("/")[0] + "/" == prefix for reference in references):
            return False
        inspect = [self.engine, "inspect", "--type", "image"]
        return self.push or all(subprocess.run([*inspect, name], capture_output=True, check=False).returncode == 0 for name in references)


def build_images(request: Request) -> ImagesLock:
    """Build both images from the current folder and return their lock."""
    commit, engine, registry = git_commit() or "unknown", request.engine, request.registry
    if request.has_cpu_wheels:
        pin_cpu_wheels(request.indexes[CPU_WHEELS_INDEX])
    context = request.context_sha256()
    pins = {target: hashlib.sha256(Path(path).read_bytes()).hexdigest() for target, path in _PINS.items()}
    references = {}
    for image, local_name in (("cpu", CPU_IMAGE), ("gpu", GPU_IMAGE)):
        tag = f"{commit[:12]}{'-dirty' if commit.endswith('-dirty') else ''}"
        name = f"{registry.rstrip('/')}/celebdit-{image}:{tag}" if registry else local_name
        arguments = {**request.indexes, "GIT_COMMIT": commit, "LOCK_SHA256": pins[image]}
        target = "cpu-wheels" if image == "cpu" and request.has_cpu_wheels else image
        click.echo(f"building {name} with {engine}", err=True)
        run_engine(Build(target, name, request.base_image, arguments, request.options).command(engine))
        references[image] = push_image(engine, name, compression=request.compression) if request.push else local_digest(engine, name)
        if registry:
            run_engine([engine, "tag", name, local_name])
    return ImagesLock(images=Images(**references), git_commit=commit, pins_sha256=pins, context_sha256=context)


@click.command(
    epilog=example("python -m pipeline.images --base-image docker.io/library/python:3.11-slim --registry registry.example/team --push")
)
@click.option("--base-image", required=True, help="Debian or Ubuntu image with Python 3.11 or newer, preferably by digest.")
@click.option("--registry", help="Registry and path of the images, like registry.example/team.  [default: this machine only]")
@click.option("--push", is_flag=True, help="Push the images, so that a cluster can pull them.")
@click.option("--engine", type=click.Choice(ENGINES), help="Container engine.  [default: the first that works]")
@click.option("--pip-index", default="", help="Package index for pip.  [default: pip's]")
@click.option("--uv-index", default="", help="Package index for uv.  [default: uv's]")
@click.option("--cpu-wheels-index", default="", help="Index with torch built for CPUs, for a smaller cpu image.  [default: as for GPUs]")
@click.option("--compression", type=click.Choice(["gzip", "zstd"]), help="Of pushed layers.  [default: the engine's]")
@click.option("--force", is_flag=True, help="Build although the lock file says that nothing has changed.")
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
    cpu_wheels_index: str,
    compression: str | None,
    force: bool,
    options: tuple[str, ...],
    lock: Path,
) -> None:
    """Build both images from the current folder and write their digests to the lock file."""
    try:
        if push and registry is None:
            raise BadInput("--push needs --registry", hint="like --registry registry.example/team")
        named = (("PIP_INDEX_URL", pip_index), ("UV_DEFAULT_INDEX", uv_index), (CPU_WHEELS_INDEX, cpu_wheels_index))
        indexes = {key: value for key, value in named if value}
        request = Request(working_engine(engine), base_image, registry, push, compression, indexes, options)
        images_lock = None if force or not lock.exists() else read_lock(lock)
        if images_lock is not None and request.is_met_by(images_lock, commit=git_commit() or "unknown"):
            click.echo(f"nothing to build: {lock} is of these files and this base image (--force builds again)", err=True)
        else:
            images_lock = build_images(request)
            lock.write_text(images_lock.model_dump_json(indent=2) + "\n")
            click.echo(f"wrote {lock}" + ("" if push else "; the images were not pushed and are only on this machine"), err=True)
    except CelebditError as error:
        click.echo(f"images: {error.message}" + (f"\n  {error.hint}" if error.hint else ""), err=True)
        raise SystemExit(error.exit_code) from None
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
