"""A version that `celebdit serve` serves, in a process of its own, and requests to it."""

import json
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import psutil
from celebdit_testing.processes import processes_below
from celebdit_testing.waiting import wait_until

from components.system.ports import free_port
from components.system.process import spawn, stop


@dataclass(frozen=True)
class Server:
    """`celebdit serve`, or another server of a version, and its port."""

    process: "subprocess.Popen[bytes]"
    port: int

    def answer(self, question: bytes) -> Any:
        """Return the predictions for a request, as soon as the server answers."""
        predictions: list[Any] = []

        def predict() -> bool:
            try:
                request = urllib.request.Request(
                    f"http://127.0.0.1:{self.port}/invocations", question, {"Content-Type": "application/json"}
                )
                with urllib.request.urlopen(request, timeout=30) as answer:
                    predictions.append(json.load(answer)["predictions"])
            except OSError:
                return False
            return True

        wait_until(predict, timeout_s=250, every_s=0.3, alive=lambda: self.process.poll() is None)
        return predictions[0]

    def post(self, body: bytes | IO[bytes], content_type: str = "application/json", **headers: str) -> tuple[int, Any]:
        """Return status and answer of one request, whatever they are."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/invocations",
            body,
            {"Content-Type": content_type, **headers},  # type: ignore[arg-type]
        )
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as refused:
            return refused.code, json.loads(refused.read())

    @property
    def workers(self) -> list[psutil.Process]:
        """The processes below the command, one of which has the model."""
        return processes_below(self.process.pid)

    @property
    def models(self) -> list[psutil.Process]:
        """The process that has the model, as soon as it was started."""
        return processes_below(self.process.pid, running="components.serving.server")


@contextmanager
def served(home: Path, model: str, *, stdout: int = subprocess.DEVNULL) -> Iterator[Server]:
    """Run `celebdit serve` on a free port inside the block; it may end earlier."""
    port = free_port()
    process = spawn(
        [sys.executable, "-m", "pipeline.cli", "serve", model, "--port", str(port), "--home", str(home)], stdout=stdout, new_group=True
    )
    try:
        yield Server(process, port)
    finally:
        stop(process, grace_s=10)
