"""Find the container engine of this machine, docker or podman, and ask it what it has.

Promises: podman's API runs only inside the block that uses it. Containers are run in `containers.py`.
"""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from typing import Any

from components.errors import BadInput, TemporaryFailure
from components.system.process import spawn, stop

_READY_S = 90.0
_DOCKER_SOCKET = "unix:///var/run/docker.sock"


@contextmanager
def engine_address() -> Iterator[str]:
    """Yield the address of a Docker API: DOCKER_HOST, docker's socket, or podman's API, which runs until the block ends.

    Raises:
        BadInput: if none of them answers.
    """
    for address in (os.environ.get("DOCKER_HOST"), _DOCKER_SOCKET):
        if address and _answers(address):
            yield address
            return
    if os.environ.get("DOCKER_HOST"):
        raise BadInput(f"no container engine answers at DOCKER_HOST {os.environ['DOCKER_HOST']}", hint="start it, or unset DOCKER_HOST")
    podman = shutil.which("podman")
    if podman is None:
        raise BadInput("--runner container needs docker or podman, and neither is available", hint="install podman, or start docker")
    with tempfile.TemporaryDirectory(prefix="celebdit-podman-") as folder:
        address = f"unix://{folder}/podman.sock"
        process = spawn([podman, "system", "service", "--time=0", address], stdout=subprocess.DEVNULL, new_group=True)
        try:
            deadline_s = time.monotonic() + _READY_S
            while not _answers(address):
                if process.poll() is not None or time.monotonic() > deadline_s:
                    raise BadInput("podman could not start its API service", hint=f"see its error: podman system service {address}")
                time.sleep(0.1)
            yield address
        finally:
            stop(process, grace_s=5.0)


def rootless_podman(address: str) -> bool:
    """Return whether the engine at `address` is rootless podman, which maps user ids."""
    with _client(address) as client:
        podman = any("podman" in str(part.get("Name", "")).lower() for part in client.version().get("Components", []))
        return podman and "name=rootless" in client.info().get("SecurityOptions", [])


def require_images(address: str, images: Sequence[str]) -> None:
    """Check that the images that were built locally exist on this machine.

    Raises:
        BadInput: with the name of the missing image.
    """
    import docker.errors  # noqa: PLC0415

    with _client(address) as client:
        for image in images:
            if image.startswith("localhost/"):
                try:
                    client.images.get(image)
                except docker.errors.ImageNotFound as error:
                    raise BadInput(f"image {image} is not on this machine", hint="build it: make images BASE_IMAGE=...") from error


def remove_containers(address: str, label: str) -> int:
    """Remove the containers with `label` (`name=value`), running or not, and return their number."""
    import docker.errors  # noqa: PLC0415

    with _client(address) as client:
        containers = client.containers.list(all=True, filters={"label": label}, sparse=True)
        for container in containers:
            with suppress(docker.errors.NotFound):
                container.remove(force=True)
        return len(containers)


@contextmanager
def _client(address: str) -> Iterator[Any]:
    """Yield a client of the engine.

    Raises:
        TemporaryFailure: if it does not answer, for example podman while it writes a large image.
    """
    import docker  # noqa: PLC0415
    import docker.errors  # noqa: PLC0415

    try:
        client = docker.DockerClient(base_url=address)
    except docker.errors.DockerException as error:
        raise TemporaryFailure(
            f"the container engine at {address} does not answer", hint="it may be busy building an image: run the command again"
        ) from error
    with closing(client):
        yield client


def _answers(address: str) -> bool:
    import docker  # noqa: PLC0415
    import docker.errors  # noqa: PLC0415

    try:
        with closing(docker.DockerClient(base_url=address, timeout=5)) as client:
            return bool(client.ping())
    except (docker.errors.DockerException, OSError):
        return False
