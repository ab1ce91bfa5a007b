"""Heavy libraries are imported only where they are needed."""

import subprocess
import sys
from pathlib import Path

import pytest


def loaded(code: str, libraries: set[str]) -> set[str]:
    """Those of `libraries` that a new process has imported after `code`."""
    code = f"import sys; {code}; print(*(set(sys.modules) & {libraries!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[4])
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("modules", "unneeded"),
    [
        ("components.train.train", {"torch", "mlflow", "kubernetes"}),
        ("components.train.worker, components.evaluate.measure", {"mlflow", "torch_fidelity", "torchvision", "triton"}),
        ("components.evaluate.worker", {"mlflow", "torch_fidelity", "torchvision", "torch._dynamo"}),
        ("components.evaluate.evaluate, components.register.register", {"torch", "torch_fidelity"}),
        ("pipeline.commands.run", {"numpy", "PIL", "mlflow", "torch"}),
        ("components.ingest.decoding.decoder", {"pandas", "torch", "psutil", "boto3"}),
    ],
)
def test_a_step_imports_no_library_before_it_needs_it(modules: str, unneeded: set[str]) -> None:
    assert loaded(f"import {modules}", unneeded) == set()


def test_the_kubernetes_client_is_imported_before_the_journals_thread_starts_to_import_mlflow() -> None:
    """Both import requests, and two threads that import a package at once can each see a part of it."""
    start = "from components.resources import ResourcesConfig; from components.train.train import rank_runner; rank_runner"
    assert loaded(f"{start}(ResourcesConfig(nodes=2))", {"kubernetes"}) == {"kubernetes"}
    assert loaded(f"{start}(ResourcesConfig(nodes=1))", {"kubernetes"}) == set()
