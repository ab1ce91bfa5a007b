"""Real S3 servers for tests: rclone on a directory and moto in memory, both on 127.0.0.1."""

import os
import socket
import sysconfig
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from components.process import spawn, stop

ACCESS_KEY = "test-access-key"
SECRET_KEY = "canary-secret-0123456789"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for_port(port: int, *, deadline_s: float = 30.0) -> None:
    end = time.monotonic() + deadline_s
    while time.monotonic() < end:
        with socket.socket() as probe:
            probe.settimeout(1.0)
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise TimeoutError(f"nothing listens on port {port}")


@contextmanager
def rclone_server(folder: Path, *, port: int | None = None) -> Iterator[str]:
    """Serve `folder` as S3 and yield the endpoint."""
    port = port or free_port()
    (folder / "bucket").mkdir(parents=True, exist_ok=True)
    rclone = Path(sysconfig.get_path("scripts")) / "rclone"
    environment = {**os.environ, "RCLONE_AUTH_KEY": f'"{ACCESS_KEY},{SECRET_KEY}"', "RCLONE_CONFIG": "/dev/null"}
    command = [str(rclone), "serve", "s3", "--addr", f"127.0.0.1:{port}", "--etag-hash", "", "--dir-cache-time", "1s", str(folder)]
    with (folder / "rclone.log").open("ab") as log:
        process = spawn(command, environment=environment, stdout=log, new_group=True)
        try:
            wait_for_port(port)
            yield f"http://127.0.0.1:{port}"
        finally:
            stop(process, grace_s=5.0)


@contextmanager
def moto_server() -> Iterator[str]:
    """Serve S3 from memory and yield the endpoint."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
    finally:
        server.stop()
