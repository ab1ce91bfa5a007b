"""The command line of every Python process that this program starts.

Promises: such a process imports nothing from the folder that it is started in. `python -m` would put that folder first, before the standard
library: a `json.py` beside the images would run. `child_environment.py` makes the rest of it hold for what the child starts itself.
"""

import sys
from pathlib import Path


def python_command(module: str, *arguments: str) -> list[str]:
    """Return the command that runs `module` with this process's interpreter."""
    return [sys.executable, "-P", "-m", module, *arguments]


def isolated_script(script: Path, *arguments: str) -> list[str]:
    """Return the command that runs a script which needs the standard library alone; it ignores the environment's PYTHON variables."""
    return [sys.executable, "-I", "-S", str(script), *arguments]
