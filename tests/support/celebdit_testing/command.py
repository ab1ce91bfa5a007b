"""The command line as its users run it: a process of its own."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COMMAND = [sys.executable, "-m", "pipeline.cli"]


@dataclass(frozen=True)
class Finished:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one JSON object on stdout."""
        return json.loads(self.out)


def celebdit(*arguments: str, home: Path, timeout_s: float = 280.0, **environment: str) -> Finished:
    done = subprocess.run(
        [*COMMAND, *arguments, "--home", str(home)],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )
    return Finished(done.returncode, done.stdout, done.stderr)
