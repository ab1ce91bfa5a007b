"""The commands of docker, podman and buildah that build and push an image.

Promises: each of the three builds the same images, and stores what they share once.
"""

import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from components.errors import BadInput, TemporaryFailure

ENGINES = ("podman", "buildah", "docker")


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


def push_image(engine: str, name: str, *, compression: str | None = None) -> str:
    """Push image `name` and return its reference by the digest in the registry; `compression` is of its layers.

    Raises:
        BadInput: if the engine cannot compress layers as asked.
    """
    repository = repository_of(name)
    if engine == "docker":
        if compression is not None:
            raise BadInput(f"docker push cannot compress layers with {compression}", hint="leave --compression out, or use --engine podman")
        run_engine([engine, "push", "--quiet", name])
        return f"{repository}@{_docker_digest(name)}"
    with tempfile.TemporaryDirectory() as folder:
        digest = Path(folder) / "digest"
        options = [] if compression is None else ["--compression-format", compression, *_force_compression(engine)]
        run_engine([engine, "push", *options, "--digestfile", str(digest), name])
        return f"{repository}@{digest.read_text().strip()}"


def _force_compression(engine: str) -> list[str]:
    """Return the option, if the engine has it, without which a layer that the registry has stays in the compression that it has there."""
    option = "--force-compression"
    return [option] if option in run_engine([engine, "push", "--help"], capture=True) else []


def local_digest(engine: str, name: str) -> str:
    """Return the reference of image `name` by its digest on this machine.

    Raises:
        BadInput: if it has no digest before it is pushed, as with docker's classic image store.
    """
    if engine == "docker":
        return f"{repository_of(name)}@{_docker_digest(name)}"
    command = [engine, "images", "--digests", "--format", "{{.Digest}}", name]
    return f"{repository_of(name)}@{run_engine(command, capture=True).splitlines()[0].strip()}"


def repository_of(name: str) -> str:
    """Return the name of an image without its tag."""
    head, _, tail = name.rpartition("/")
    return f"{head}/{tail.partition(':')[0]}" if head else tail.partition(":")[0]


def _docker_digest(name: str) -> str:
    digests = run_engine(["docker", "image", "inspect", "--format", '{{join .RepoDigests "\\n"}}', name], capture=True)
    if match := re.search(rf"^{re.escape(repository_of(name))}@(sha256:[0-9a-f]{{64}})$", digests, re.MULTILINE):
        return match.group(1)
    raise BadInput(f"docker has no digest of {name} before it is pushed", hint="build with REGISTRY=... PUSH=1, or with podman")


def run_engine(command: Sequence[str], *, capture: bool = False) -> str:
    """Run an engine's command and return what it prints, with `capture`, or else nothing.

    Raises:
        TemporaryFailure: if it fails.
    """
    try:
        process = subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE if capture else None)
    except subprocess.CalledProcessError as error:
        raise TemporaryFailure(
            f"`{' '.join(command[:2])}` ended with status {error.returncode}", hint="see its output above, then run `make images` again"
        ) from error
    return process.stdout or ""
