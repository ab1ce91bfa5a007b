"""MLflow as the steps import it that only record."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[4]
HEAVY = {"pandas", "numpy", "fastapi", "mlflow.genai.judges", "boto3"}
FINALIZE = """
import sys
from components.runtime.context import step
with step("finalize", {"CELEBDIT_STORE": "s3://bucket/p", "MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "CELEBDIT_RUN_ID": "r"}):
    pass
"""
IMPORTS = """
import components.finalize.finalize
from components.tracking.client import Tracking
from mlflow import MlflowClient
"""


def output(code: str, *, runtime: str | None) -> list[str]:
    environment = {name: value for name, value in os.environ.items() if name != "_KFP_RUNTIME"}
    environment |= {} if runtime is None else {"_KFP_RUNTIME": runtime}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=CHECKOUT, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_the_pod_of_a_step_that_only_records_imports_mlflow_without_its_heavy_parts() -> None:
    """What was left out can be imported afterwards."""
    heavy = f"print(*(set(sys.modules) & {HEAVY!r}), sep=',')"
    after = "import numpy, mlflow.gateway; print(numpy.ones(1).size, mlflow.gateway.__name__)"
    assert output(f"{FINALIZE}{IMPORTS}{heavy}\n{after}", runtime="true") == ["1", "mlflow.gateway"]


@pytest.mark.parametrize(
    ("step", "runtime", "is_light"),
    [("finalize", "true", True), ("evaluate", "true", True), ("finalize", None, False), ("register", "true", False)],
)
def test_every_other_process_imports_all_of_mlflow(step: str, runtime: str | None, is_light: bool) -> None:
    """One that does more than one step, as this one, and one that packages or loads a model."""
    finders = "\n    print(any(type(finder).__name__ == '_LightMlflow' for finder in sys.meta_path))"
    assert output(FINALIZE.replace("finalize", step) + finders, runtime=runtime) == [str(is_light)]
