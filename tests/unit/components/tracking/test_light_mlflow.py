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


@pytest.mark.parametrize(("runtime", "loaded"), [("true", set()), (None, HEAVY - {"boto3"})])
def test_the_pod_of_a_step_that_only_records_imports_mlflow_without_its_heavy_parts(runtime: str | None, loaded: set[str]) -> None:
    """In a process that does more than one step, such as this one, all of MLflow is imported."""
    assert set(output(f"{FINALIZE}\nprint(*(set(sys.modules) & {HEAVY!r}))", runtime=runtime)) == loaded


def test_what_was_left_out_of_mlflow_can_be_imported_afterwards() -> None:
    after = "import pandas, numpy, mlflow.gateway; print(pandas.DataFrame.__name__, mlflow.gateway.__name__)"
    assert output(f"{FINALIZE}\n{after}", runtime="true") == ["DataFrame", "mlflow.gateway"]
