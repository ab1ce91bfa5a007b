"""A folder of images in which somebody left Python files with the names of modules: whoever imports one of them leaves a mark."""

import subprocess
import sys
from pathlib import Path

NAMES = (
    "json",
    "logging",
    "socket",
    "random",
    "numpy",
    "torch",
    "PIL",
    "mlflow",
    "uvicorn",
    "kfp",
    "boto3",
    "sitecustomize",
    "usercustomize",
)
_TRAP = """import os
with open({marks!r}, "a") as marks:
    marks.write(__name__ + " in process " + str(os.getpid()) + chr(10))
"""


class Traps:
    """The folder, and the marks of those who imported from it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._marks = folder.parent / f"{folder.name}.marks"
        folder.mkdir(parents=True, exist_ok=True)
        for name in NAMES:
            (folder / f"{name}.py").write_text(_TRAP.format(marks=str(self._marks)))

    def marks(self) -> list[str]:
        return self._marks.read_text().splitlines() if self._marks.exists() else []

    def assert_live(self) -> None:
        """Show that the traps work, with a process that does import from the folder."""
        before = self.marks()
        subprocess.run([sys.executable, "-m", "timeit", "-n1", "import random"], cwd=self.folder, check=False, capture_output=True)
        assert self.marks() != before, "nobody can fall into these traps"
        self._marks.write_text("".join(f"{mark}\n" for mark in before))
