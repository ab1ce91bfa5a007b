"""The record of a home's embedded servers, `services.json`: which processes they are, and whether they stay after the last command.

Promises: a server is in the record from before its process starts, so that one whose command ended right after is found by its mark.
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from components.environment import SERVER_TOKEN
from components.system.private import write_private
from pipeline.server_process import Server, find_server

WATCHDOG = "watchdog"


class ServerRecord:
    """The record at a path; callers that change it hold the lock of the home."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> dict[str, Server | None]:
        """Return the recorded servers whose processes are running, and None for the others: `s3`, `mlflow` and the watchdog."""
        servers: dict[str, Server | None] = {"s3": None, "mlflow": None, WATCHDOG: None}
        with suppress(OSError, ValueError, TypeError, KeyError):
            record = json.loads(self._path.read_text())
            recorded, starting = record["servers"], record.get("starting", {})
            for name in servers:
                if name in recorded:
                    server = Server(**recorded[name])
                    servers[name] = server if server.process() is not None else None
                elif name in starting:
                    servers[name] = find_server(**starting[name])
        return servers

    def write(self, servers: Mapping[str, Server | None], *, stay: bool, starting: Mapping[str, Mapping[str, str]] | None = None) -> None:
        """Replace the record; `starting` has the `url` and the `mark` of a server whose process is started after this."""
        recorded = {name: asdict(server) for name, server in servers.items() if server}
        write_private(self._path, json.dumps({"servers": recorded, "starting": starting or {}, "stay": stay}))

    def stays(self) -> bool:
        """Return whether the servers keep running after the command that started them."""
        try:
            return bool(json.loads(self._path.read_text()).get("stay"))
        except (OSError, ValueError):
            return False

    def remove(self) -> None:
        """Remove the record."""
        self._path.unlink(missing_ok=True)


def stop_unusable(servers: dict[str, Server | None]) -> None:
    """Stop servers that are ending or whose port another process has, and an MLflow without a token or without its object storage."""
    for name in ("s3", "mlflow"):
        server = servers[name]
        if server is None:
            continue
        is_usable = server.listens() and (name == "s3" or (servers["s3"] is not None and SERVER_TOKEN in server.environment()))
        if not is_usable:
            server.stop()
            servers[name] = None
