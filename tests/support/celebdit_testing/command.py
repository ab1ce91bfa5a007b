"""The command line as its users run it: a process of its own."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli import main

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


def celebdit(*arguments: str, home: Path, timeout_s: float = 280.0, folder: Path | None = None, **environment: str) -> Finished:
    """Run the command line; in `folder` as the installed program, because `python -m` itself imports from the current folder."""
    program = COMMAND if folder is None else [str(Path(sys.executable).parent / "celebdit")]
    done = subprocess.run(
        [*program, *arguments, "--home", str(home)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )
    return Finished(done.returncode, done.stdout, done.stderr)


def celebdit_here(*arguments: str, home: Path, capture: pytest.CaptureFixture[str]) -> Finished:
    """The command line in this process, with what it prints captured: for many short commands, whose imports would take longer."""
    capture.readouterr()
    environment = dict(os.environ)
    try:
        main([*arguments, "--home", str(home)])
    except SystemExit as ended:
        captured = capture.readouterr()
        return Finished(int(ended.code or 0), captured.out, captured.err)
    finally:
        os.environ.clear()
        os.environ.update(environment)
    raise AssertionError("the command line always ends with an exit code")
