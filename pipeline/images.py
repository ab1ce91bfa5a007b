"""The two container images: which ones a pipeline uses, and how they are built.

Promises: a lock names every image by digest, never by tag, with the commit and the pins that it was built from; the same build works with
docker, podman and buildah; no index address and no registry is written here, both come from whoever builds. `python -m pipeline.images`.
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
from components.runtime.context import describe
from model.frozen_config import FrozenConfig, TextForm
from pipeline.session import git_commit

LOCK_FILE = Path("images.lock.json")
ENGINES = ("podman", "buildah", "docker")
ImageDigest = Annotated[
    str, TextForm(r"[^@\s]+@sha256:[0-9a-f]{64}", example="registry.example/celebdit-cpu@sha256:" + 4 * "0123456789abcdef")
]
_PINS = {"cpu": "requirements/cpu.txt", "gpu": "requirements/run.txt"}


class Images(FrozenConfig):
    """The images of a pipeline, by digest."""

    cpu: ImageDigest = Field(description="for preflight, ingest, gate, register and finalize")
    gpu: ImageDigest = Field(description="for train and evaluate")


class ImagesLock(FrozenConfig):
    """What `make images` writes down."""

    images: Images
    git_commit: str
    pins_sha256: dict[str, str]
    """sha256 of the file of pins that each image was built from."""


def read_lock(path: Path) -> ImagesLock:
    """Return the lock at `path`.

    Raises:
        BadInput: if it is not there, not a lock, or names an image without its digest.
    """
    try:
        return ImagesLock.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise BadInput(
            f"{path} does not exist, so nobody knows which images to run",
            hint="build them (`make images`, docs/kubernetes.md), or name the file with --images",
        ) from error
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        raise BadInput(
            f"{path}: {describe(error, section='lock')}", hint="images are named by digest, name@sha256:...: build and push them again"
        ) from error


@dataclass(frozen=True)
class Build:
    """One image to be built: which target, under which name, from what."""

    target: str
    name: str
    base_image: str
    arguments: Mapping[str, str]
    options: Sequence[str] = ()

    def command(self, engine: str) -> list[str]:
        """Return the command that builds it from the current folder."""
        given = {"BASE_IMAGE": self.base_image, **self.arguments}
        return [
            engine,
            "build",
            *self.options,
            *(part for key, value in given.items() for part in ("--build-arg", f"{key}={value}")),
            "--target",
            self.target,
            "--tag",
            self.name,
            "--file",
            "docker/Dockerfile",
            ".",
        ]


def working_engine(wanted: str | None) -> str:
    """Return the engine that was asked for, or the first that works here.

    Raises:
        BadInput: if there is none.
    """
    for engine in (wanted,) if wanted else ENGINES:
        if shutil.which(engine) and subprocess.run([engine, "info"], capture_output=True, check=False).returncode == 0:
            return engine
    which = wanted or ", ".join(ENGINES)
    raise BadInput(f"no container engine works here (tried {which})", hint="install podman, or start the docker daemon")


def pushed(engine: str, name: str) -> str:
    """Push image `name` and return it by the digest that its registry knows."""
    repository = _repository(name)
    if engine == "docker":
        _run([engine, "push", "--quiet", name])
        return f"{repository}@{_docker_digest(name)}"
    with tempfile.TemporaryDirectory() as folder:
        digest = Path(folder) / "digest"
        _run([engine, "push", "--digestfile", str(digest), name])
        return f"{repository}@{digest.read_text().strip()}"


def local_digest(engine: str, name: str) -> str:
    """Return image `name` by the digest under which this machine knows it.

    Raises:
        BadInput: if it has none before it is pushed, as with docker's classic image store.
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
    found = {}
    for target, local_name in (("cpu", CPU_IMAGE), ("gpu", GPU_IMAGE)):
        name = (
            f"{registry.rstrip('/')}/celebdit-{target}:{commit[:12]}{'-dirty' if commit.endswith('-dirty') else ''}"
            if registry
            else local_name
        )
        arguments = {**indexes, "GIT_COMMIT": commit, "LOCK_SHA256": pins[target]}
        click.echo(f"building {name} with {engine}", err=True)
        _run(Build(target, name, base_image, arguments, options).command(engine))
        found[target] = pushed(engine, name) if push else local_digest(engine, name)
        if registry:
            _run([engine, "tag", name, local_name])
    return ImagesLock(images=Images(**found), git_commit=commit, pins_sha256=pins)


def _repository(name: str) -> str:
    head, _, tail = name.rpartition("/")
    return f"{head}/{tail.partition(':')[0]}" if head else tail.partition(":")[0]


def _docker_digest(name: str) -> str:
    digests = _run(["docker", "image", "inspect", "--format", '{{join .RepoDigests "\\n"}}', name], capture=True)
    if found := re.search(rf"^{re.escape(_repository(name))}@(sha256:[0-9a-f]{{64}})$", digests, re.MULTILINE):
        return found.group(1)
    raise BadInput(f"docker knows no digest of {name} before it is pushed", hint="build with REGISTRY=... PUSH=1, or with podman")


def _run(command: Sequence[str], *, capture: bool = False) -> str:
    try:
        done = subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE if capture else None)
    except subprocess.CalledProcessError as error:
        raise TemporaryFailure(
            f"`{' '.join(command[:2])}` ended with status {error.returncode}", hint="its output above says why; run `make images` again"
        ) from error
    return done.stdout or ""


@click.command()
@click.option("--base-image", required=True, help="A Debian or Ubuntu image with Python 3.11 or newer, ideally by digest.")
@click.option("--registry", help="Where the images are to live, like registry.example/team.  [default: this machine only]")
@click.option("--push", is_flag=True, help="Push them, so that a cluster can pull them.")
@click.option("--engine", type=click.Choice(ENGINES), help="[default: the first that works]")
@click.option("--pip-index", default="", help="Index for pip, if not its default.")
@click.option("--uv-index", default="", help="Index for uv, if not its default.")
@click.option("--option", "options", multiple=True, help="Handed to the engine's build as it is, like --option=--network=host.")
@click.option("--lock", type=click.Path(dir_okay=False, path_type=Path), default=LOCK_FILE, show_default=True)
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
    """Build both images from this folder and write their digests down."""
    try:
        if push and registry is None:
            raise BadInput("--push needs --registry: where to push to")
        indexes = {key: value for key, value in (("PIP_INDEX_URL", pip_index), ("UV_DEFAULT_INDEX", uv_index)) if value}
        found = build_images(
            engine=working_engine(engine), base_image=base_image, registry=registry, push=push, indexes=indexes, options=options
        )
    except CelebditError as error:
        click.echo(f"images: {error.message}" + (f"\n  {error.hint}" if error.hint else ""), err=True)
        raise SystemExit(error.exit_code) from None
    lock.write_text(found.model_dump_json(indent=2) + "\n")
    click.echo(f"wrote {lock}" + ("" if push else ": not pushed, so only this machine has them"), err=True)


if __name__ == "__main__":
    main()
