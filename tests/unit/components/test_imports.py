"""Heavy libraries are imported only where they are needed."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("modules", "unneeded"),
    [
        ("components.train.train", {"torch", "mlflow", "kubernetes"}),
        ("components.train.worker, components.evaluate.measure", {"mlflow", "torch_fidelity", "torchvision"}),
        ("components.evaluate.evaluate, components.register.register", {"torch", "torch_fidelity"}),
        ("components.ingest.decoding.decoder", {"numpy", "psutil", "boto3"}),
    ],
)
def test_a_step_imports_no_library_before_it_needs_it(modules: str, unneeded: set[str]) -> None:
    code = f"import sys, {modules}; print(*sorted(set(sys.modules) & {unneeded!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[4])
    assert done.stdout.split() == []
