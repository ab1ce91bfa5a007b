"""What a test process must be after a file of tests as it was before it, because the tests after it run in the same process."""

import os
import sys
from pathlib import Path

_STEERING = (
    *("CELEBDIT_", "MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "AWS_ENDPOINT_URL", "AWS_PROFILE", "KF_", "KUBECONFIG"),
    *("HOME", "PATH", "TMPDIR"),
)
"""How the names of variables begin that lead commands and steps to servers, folders and programs."""


def process_state() -> dict[str, object]:
    """Return the variables that steer commands, the current folder, the umask and torch's settings, by name."""
    state: dict[str, object] = {name: value for name, value in os.environ.items() if name.startswith(_STEERING)}
    state["current folder"] = Path.cwd()
    if (status := Path("/proc/self/status")).exists():
        # `os.umask` would have to set another one, in which a thread could make a file.
        state["umask"] = next(line for line in status.read_text().splitlines() if line.startswith("Umask:"))
    if (torch := sys.modules.get("torch")) is not None:
        state |= {
            "torch's threads": torch.get_num_threads(),
            "torch's default type": torch.get_default_dtype(),
            "torch's deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
            "torch's gradients": torch.is_grad_enabled(),
        }
    return state


def changes(before: dict[str, object], after: dict[str, object]) -> list[str]:
    """Return the names of what changed; what torch, imported meanwhile, brings is no change."""
    names = (before.keys() | after.keys()) - {name for name in after.keys() - before.keys() if name.startswith("torch's")}
    return sorted(name for name in names if before.get(name) != after.get(name))
