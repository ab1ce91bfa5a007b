"""Run steps in containers on this machine, with docker or podman.

Promises: a container that fails is a failed task, with either engine; stopping a run stops its container and gives the step time to save;
a step sees its endpoints, the folder of the run, the data sources and the certificates (both read-only) and nothing else of this machine:
no privileges, no root user, a read-only root file system.
"""

import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from components.deployment import CPU_IMAGE, GPU_IMAGE, IMAGE_USER
from components.environment import WORK_DIR
from components.errors import TemporaryFailure
from components.ingest.sources.open_source import kind_of
from components.system.child_environment import MOUNTED_FILES, child_environment
from model.frozen_config import FrozenConfig
from pipeline.config import RunConfig

RUN_LABEL = "io.celebdit.run"
TO_ALL = {"TINI_KILL_PROCESS_GROUP": "1"}
"""Lets process 1 of a container pass signals on to the step, not only to the shell that kfp puts around it."""
_STOP_S = 30


class ContainerPlan(FrozenConfig):
    """Settings of the containers of one run, passed to the process of kfp's local runner as JSON."""

    cpu: str
    gpu: str
    run_id: str
    folders: tuple[str, ...]
    """Mounted read-write, at the same path."""
    sources: tuple[str, ...]
    """Mounted read-only, at the same path."""
    shm: str
    with_gpus: bool
    credentials: tuple[str, ...]
    """Variables with credentials of the data source; kfp gives all containers of a run the same environment."""
    rootless_podman: bool


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
    """Return the container settings of a run of `config`; creates its folders and makes the user of the images their owner."""
    folders = (folder, folder / "kfp", Path(environment[WORK_DIR]))
    for writable in folders:
        writable.mkdir(parents=True, exist_ok=True)
        if os.getuid() == 0:
            os.chown(writable, IMAGE_USER, IMAGE_USER)
    kind, weights = kind_of(config.data.source), config.evaluation.weights
    inputs = [kind.local_path(config.data.source)] if kind.local_path is not None else []
    inputs += [Path(weights)] if weights is not None and "://" not in weights else []
    inputs += [Path(path) for name in MOUNTED_FILES if (path := environment.get(name)) and Path(path).is_file()]
    sources = tuple(dict.fromkeys(str(path.absolute()) for path in inputs if path.exists()))
    return ContainerPlan(
        cpu=cpu,
        gpu=gpu,
        run_id=run_id,
        folders=(str(folder), str(folders[2])),
        sources=sources,
        shm=config.resources.shm,
        with_gpus=config.resources.device == "cuda",
        credentials=kind.credentials,
        rootless_podman=rootless_podman,
    )


def container_arguments(plan: ContainerPlan, environment: Mapping[str, str], *, user_id: int) -> dict[str, Any]:
    """Return the keyword arguments of the container engine's `create`, the same for every step."""
    from docker.types import DeviceRequest, Mount  # noqa: PLC0415 - comes with kfp, and only this process needs it

    user = IMAGE_USER if user_id == 0 else user_id
    credentials = {name: environment[name] for name in plan.credentials if name in environment}
    arguments: dict[str, Any] = {
        "network_mode": "host",  # the embedded servers listen on 127.0.0.1
        "environment": child_environment("container", environment, **credentials, **TO_ALL),
        "user": f"{user}:{user}",
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
    """Run one container to its end, print its log and return its exit status.

    Replaces `run_docker_container` of kfp 2.17, which lets the engine remove the container before it reads the status: with podman every
    failure then looks like a success.
    """
    import docker.errors  # noqa: PLC0415

    try:
        client.images.get(image)
    except docker.errors.ImageNotFound:
        print(f"pulling {image}", flush=True)
        client.images.pull(image)
    container = client.containers.create(image=image, command=_wait_for_step(command), volumes=volumes, **arguments)
    try:
        with _interrupt_on_sigterm():
            container.start()
            for chunk in container.logs(stream=True, follow=True):
                sys.stdout.write(chunk.decode(errors="replace"))
            return int(container.wait()["StatusCode"])
    except docker.errors.APIError as error:
        raise TemporaryFailure(
            f"container of {image} could not be run: {error.explanation or error}", hint="try to run the image with docker or podman"
        ) from error
    except BaseException:
        with suppress(docker.errors.APIError):
            container.stop(timeout=_STOP_S)
        raise
    finally:
        sys.stdout.flush()
        with suppress(docker.errors.NotFound):
            container.remove(force=True)


def _wait_for_step(command: Sequence[str]) -> list[str]:
    """Return kfp's command so that its shell waits for the step when both get SIGTERM: a container ends with its shell."""
    match list(command):
        case ["sh", "-ec", script, *arguments]:
            return ["sh", "-ec", f"trap : TERM\n{script}", *arguments]
        case other:
            return other


@contextmanager
def _interrupt_on_sigterm() -> Iterator[None]:
    """Raise KeyboardInterrupt on SIGTERM inside the block, so that the container is stopped too."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
