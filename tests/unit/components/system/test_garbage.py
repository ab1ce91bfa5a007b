"""Python's search for reference cycles in the process of a step, which KFP starts for it alone."""

import gc
import os
import subprocess
import sys
import weakref
from pathlib import Path

import pytest

from components.system.garbage import import_without_search

CHECKOUT = Path(__file__).parents[4]
STEP = """
import atexit, gc
atexit.register(lambda: print(gc.get_threshold()[0] > 700, gc.get_freeze_count() > 1000))  # after what the step registers
from components.runtime.context import step
with step("{step}", {{"CELEBDIT_STORE": "s3://bucket/p", "MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "CELEBDIT_RUN_ID": "r"}}):
    assert gc.isenabled()
"""


@pytest.mark.parametrize(
    ("step", "runtime", "expected"),
    [("gate", {"_KFP_RUNTIME": "true"}, "True True"), ("register", {"_KFP_RUNTIME": "true"}, "False True"), ("gate", {}, "False False")],
    ids=["a light step", "one that may hold tensors in cycles", "a process that does more than a step"],
)
def test_the_process_of_a_light_step_searches_seldom_and_that_of_any_step_not_at_its_end(
    step: str, runtime: dict[str, str], expected: str
) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "_KFP_RUNTIME"} | runtime
    command = [sys.executable, "-c", STEP.format(step=step)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=CHECKOUT, env=environment)
    assert done.stdout.strip() == expected


def test_evaluate_searches_seldom_until_it_holds_tensors() -> None:
    measured = "import components.evaluate.measure as m, components.evaluate.evaluate as e; m.measure = lambda *_: None"
    code = STEP.format(step="evaluate") + f"    {measured}\n    print(gc.get_threshold()[0] > 700)\n    e._measure(None, None, None)"
    environment = os.environ | {"_KFP_RUNTIME": "true"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=CHECKOUT, env=environment)
    assert done.stdout.split() == ["True", "False", "True"], "the second is what it ends with"


class Cyclic:
    """Refers to itself, so that only a search frees it."""

    def __init__(self) -> None:
        self.itself = self


def test_what_is_imported_without_a_search_is_left_out_of_the_next_ones() -> None:
    try:
        with import_without_search():
            assert not gc.isenabled()
            imported = Cyclic()
        assert gc.isenabled()
        made_later = Cyclic()
        reference, later = weakref.ref(imported), weakref.ref(made_later)
        del imported, made_later
        gc.collect()
        assert reference() is not None, "searches leave it out"
        assert later() is None, "but not what was made after it"
    finally:
        gc.unfreeze()
    gc.collect()
    assert reference() is None


def test_the_configuration_of_a_run_is_resolved_without_the_libraries_that_read_images() -> None:
    """It is in the pod of preflight, which reads none."""
    libraries = {"numpy", "PIL", "pandas", "torch"}
    code = f"import sys, pipeline.resolution, components.preflight.preflight; print(*sorted({libraries} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=CHECKOUT)
    assert done.stdout.split() == []
