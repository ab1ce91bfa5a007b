"""A step in a container on this machine, on docker or on podman's socket: the image, what it sees, and how it ends.

Promises: a container that fails is a failed task, whichever engine runs it; a stopped run stops its container and gives the step time to
save; a step sees its endpoints, the run's folder and the sources of data (read-only), and nothing else of this machine: no privileges, not
root, a read-only root file system.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from components.deployment import CPU_IMAGE, GPU_IMAGE
from components.environment import WORK_DIR
from components.errors import BadInput, TemporaryFailure
from components.ingest.sources.open_source import kind_of
from components.system.process import spawn, stop
from pipeline.config import RunConfig

IMAGE_USER = 10001
RUN_LABEL = "io.celebdit.run"
_PASSED_ON = ("CELEBDIT_", "AWS_", "MLFLOW_")
_PASSED_ON_TOO = ("OMP_NUM_THREADS", "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "PYTHONUNBUFFERED")
_STOP_S = 30
_READY_S = 90.0
_DOCKER_SOCKET = "unix:///var/run/docker.sock"


@dataclass(frozen=True)
class ContainerPlan:
    """How the steps of one run are put into containers; plain values, handed to the process that kfp lives in."""

    cpu: str
    gpu: str
    run_id: str
    folders: tuple[str, ...]
    """Mounted where they are, for writing."""
    sources: tuple[str, ...]
    """Mounted where they are, for reading."""
    shm: str
    with_gpus: bool
    credentials: tuple[str, ...]
    """Whether the steps get the credentials of Kaggle; kfp gives all containers of a run the same environment."""
    rootless_podman: bool

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> "ContainerPlan":
        return cls(**{**raw, "folders": tuple(raw["folders"]), "sources": tuple(raw["sources"])})


def plan_containers(
    config: RunConfig,
    folder: Path,
    environment: Mapping[str, str],
    *,
    cpu: str = CPU_IMAGE,
    gpu: str = GPU_IMAGE,
    run_id: str,
    rootless_podman: bool = False,
) -> ContainerPlan:
    """Decide what the containers of a run of `config` are given; makes the folders and hands them to the images' user."""
    folders = (folder, folder / "kfp", Path(environment[WORK_DIR]))
    for made in folders:
        made.mkdir(parents=True, exist_ok=True)
        if os.getuid() == 0:
            os.chown(made, IMAGE_USER, IMAGE_USER)
    named = (config.data.source, config.evaluation.weights)
    sources = tuple(str(Path(name).absolute()) for name in named if name is not None and "://" not in name and Path(name).exists())
    return ContainerPlan(
        cpu=cpu,
        gpu=gpu,
        run_id=run_id,
        folders=(str(folder), str(folders[2])),
        sources=sources,
        shm=config.resources.shm,
        with_gpus=config.resources.device == "cuda",
        credentials=kind_of(config.data.source).credentials,
        rootless_podman=rootless_podman,
    )


def container_arguments(plan: ContainerPlan, environment: Mapping[str, str], *, user_id: int) -> dict[str, Any]:
    """Return the keyword arguments of the container engine's `create` for every step of the plan."""
    from docker.types import DeviceRequest, Mount  # noqa: PLC0415 - comes with kfp, and only this process needs it

    who = IMAGE_USER if user_id == 0 else user_id
    named = (*_PASSED_ON_TOO, *plan.credentials)
    arguments: dict[str, Any] = {
        "network_mode": "host",  # the embedded servers listen on 127.0.0.1
        "environment": {key: value for key, value in environment.items() if key.startswith(_PASSED_ON) or key in named},
        "user": f"{who}:{who}",
        "read_only": True,
        "tmpfs": {"/tmp": "mode=1777"},  # noqa: S108 - inside the container
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges"],
        "shm_size": size_bytes(plan.shm),
        "labels": {RUN_LABEL: plan.run_id},
        "mounts": [
            *(Mount(target=path, source=path, type="bind") for path in plan.folders),
            *(Mount(target=path, source=path, type="bind", read_only=True) for path in plan.sources),
        ],
    }
    if plan.rootless_podman:
        arguments["userns_mode"] = "keep-id"
    if plan.with_gpus:
        arguments["device_requests"] = [DeviceRequest(count=-1, capabilities=[["gpu"]])]
    return arguments


def size_bytes(quantity: str) -> int:
    """Return the bytes of a Kubernetes quantity such as 8Gi."""
    for exponent, unit in enumerate(("Ki", "Mi", "Gi", "Ti"), start=1):
        if quantity.endswith(unit):
            return int(quantity.removesuffix(unit)) * 1024**exponent
    return int(quantity)


def run_container(client: Any, image: str, command: Sequence[str], volumes: Mapping[str, Any], **arguments: Any) -> int:
    """Run one container to its end and return its exit status, printing its log.

    Stands in for `run_docker_container` of kfp 2.17, which lets the engine remove the container before it asks for the status: on podman
    every failure then reads as a success.
    """
    import docker.errors  # noqa: PLC0415

    try:
        client.images.get(image)
    except docker.errors.ImageNotFound:
        print(f"pulling {image}", flush=True)
        client.images.pull(image)
    container = client.containers.create(image=image, command=list(command), volumes=volumes, **arguments)
    try:
        with _leaving_on_sigterm():
            container.start()
            for chunk in container.logs(stream=True, follow=True):
                sys.stdout.write(chunk.decode(errors="replace"))
            return int(container.wait()["StatusCode"])
    except docker.errors.APIError as error:
        raise TemporaryFailure(
            f"{image} could not be run: {error.explanation or error}", hint="try it by hand with docker or podman"
        ) from error
    except BaseException:
        with suppress(docker.errors.APIError):
            container.stop(timeout=_STOP_S)
        raise
    finally:
        sys.stdout.flush()
        with suppress(docker.errors.NotFound):
            container.remove(force=True)


@contextmanager
def _leaving_on_sigterm() -> Iterator[None]:
    """Turn SIGTERM into an exception for the block, so that the container is stopped too."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextmanager
def engine_address() -> Iterator[str]:
    """Yield the address of a Docker API: DOCKER_HOST, docker's own socket, or podman's, served for as long as the block lasts.

    Raises:
        BadInput: if this machine has none of them.
    """
    for address in (os.environ.get("DOCKER_HOST"), _DOCKER_SOCKET):
        if address and _answers(address):
            yield address
            return
    if os.environ.get("DOCKER_HOST"):
        raise BadInput(f"no container engine answers at DOCKER_HOST {os.environ['DOCKER_HOST']}", hint="start it, or unset DOCKER_HOST")
    podman = shutil.which("podman")
    if podman is None:
        raise BadInput("--runner container needs docker or podman, and neither works here", hint="install podman, or start docker")
    with tempfile.TemporaryDirectory(prefix="celebdit-podman-") as folder:
        address = f"unix://{folder}/podman.sock"
        process = spawn([podman, "system", "service", "--time=0", address], stdout=subprocess.DEVNULL, new_group=True)
        try:
            deadline_s = time.monotonic() + _READY_S
            while not _answers(address):
                if process.poll() is not None or time.monotonic() > deadline_s:
                    raise BadInput("podman cannot serve its API here", hint=f"try by hand: podman system service {address}")
                time.sleep(0.1)
            yield address
        finally:
            stop(process, grace_s=5.0)


def rootless_podman(address: str) -> bool:
    """Return whether the engine at `address` is a podman that maps user ids."""
    with _client(address) as client:
        podman = any("podman" in str(part.get("Name", "")).lower() for part in client.version().get("Components", []))
        return podman and "name=rootless" in client.info().get("SecurityOptions", [])


def require_images(address: str, plan: ContainerPlan) -> None:
    """Refuse to start when an image that exists nowhere but on the machine that built it is not here.

    Raises:
        BadInput: naming the image.
    """
    import docker.errors  # noqa: PLC0415

    with _client(address) as client:
        for image in (plan.cpu, plan.gpu):
            if image.startswith("localhost/"):
                try:
                    client.images.get(image)
                except docker.errors.ImageNotFound as error:
                    raise BadInput(f"image {image} is not on this machine", hint="build it: make images BASE_IMAGE=...") from error


@contextmanager
def _client(address: str) -> Iterator[Any]:
    """Yield a connection to the engine.

    Raises:
        TemporaryFailure: if it does not answer, as podman does not while it writes a large image.
    """
    import docker  # noqa: PLC0415
    import docker.errors  # noqa: PLC0415

    try:
        client = docker.DockerClient(base_url=address)
    except docker.errors.DockerException as error:
        raise TemporaryFailure(f"the container engine at {address} does not answer", hint="perhaps it is building: run it again") from error
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
