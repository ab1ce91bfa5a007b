"""Steps that are forked from one process: each is a process of its own, with the environment and the status that kfp's own would have."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from components.errors import TemporaryFailure
from pipeline.step_processes import StepProcesses

REPOSITORY = Path(__file__).parents[3]
RUNNER = """
import os, sys, threading
from kfp import dsl, local
from kfp.local import subprocess_task_handler
from pipeline import step_processes
from pipeline.local import fork_kfp_steps, quote_interpreter

step_processes._PRELOADED = ("kfp.dsl.executor_main", *sys.argv[2:])  # all of them take seconds

@dsl.component(install_kfp_package=False)
def describe(end: str) -> dict:
    import gc, os, signal, sys, threading, time
    from components.storage import client
    import psutil
    if end == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if end == "its parent is killed":
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(20)
        print("the step outlived the process that forks", flush=True)
    if end == "fails":
        raise SystemExit(3)
    if end == "asked to stop":
        os.kill(os.getpid(), signal.SIGTERM)
    if end == "crashes":
        os.kill(os.getpid(), signal.SIGSEGV)
    import numpy as np
    product = float((np.ones((600, 600)) @ np.ones((600, 600)))[0, 0])
    names = ("_KFP_RUNTIME", "CELEBDIT_LIFELINE", "PYTHONSAFEPATH")
    return {
        "pid": os.getpid(), "parent": os.getppid(), "folder": os.getcwd(), "path": sys.path, "preloaded": "preloaded" in sys.modules,
        "frozen": gc.get_freeze_count() > 1000, "descriptions": client._descriptions.cache_info().currsize,
        "environment": {name: os.environ.get(name) for name in names}, "command": psutil.Process().cmdline(), "product": product,
        "sigterm": str(signal.getsignal(signal.SIGTERM)), "threads": threading.active_count(),
    }

statuses = []
start = step_processes.StepProcesses.run
def run(self, command, environment=None):
    statuses.append(start(self, command, environment))
    return statuses[-1]
step_processes.StepProcesses.run = run

import json
quote_interpreter()
steps = fork_kfp_steps()
local.init(local.SubprocessRunner(use_venv=False), pipeline_root=sys.argv[1], raise_on_error=False)
seen = [describe(end="").output, describe(end="").output]
for end in ("killed", "fails", "asked to stop", "crashes"):
    describe(end=end)
if sys.argv[2] == "preloaded":
    describe(end="its parent is killed")
    seen.append(describe(end="").output)
steps.close()
print(json.dumps({"runner": os.getpid(), "path": sys.path, "seen": seen, "statuses": statuses}))
"""


def run_steps(folder: Path, *preloaded: str) -> dict[str, Any]:
    """What a runner and its steps see, and the exit statuses of these, of one that is killed and of one that fails."""
    (folder / "preloaded.py").write_text("")
    (folder / "threaded.py").write_text("import threading, time\nthreading.Thread(target=time.sleep, args=(600,), daemon=True).start()\n")
    (folder / "runner.py").write_text(RUNNER)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(folder)]),
        "CELEBDIT_LIFELINE": "/run/lifeline",
        "PYTHONSAFEPATH": "1",
        "OPENBLAS_NUM_THREADS": "2",
        "CELEBDIT_EVENTS": str(folder / "events.jsonl"),
    }
    command = [sys.executable, "-P", str(folder / "runner.py"), str(folder / "root"), *preloaded]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=120, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    (seen,) = (line for line in done.stdout.splitlines() if line.startswith('{"runner"'))
    return {**json.loads(seen), "printed": done.stdout}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="steps are forked on Linux alone")
def test_a_step_is_a_forked_process_like_the_one_that_kfp_starts(tmp_path: Path) -> None:
    runner = run_steps(tmp_path, "preloaded", "numpy")
    first, second, after = runner["seen"]
    assert first["preloaded"], "it was forked from the process that imports"
    assert (first["frozen"], first["descriptions"]) == (True, 1), "of S3, for the clients of all steps"
    assert first["pid"] != second["pid"]
    assert first["parent"] == second["parent"] != runner["runner"]
    assert runner["statuses"] == [0, 0, -signal.SIGKILL, 3, -signal.SIGTERM, -signal.SIGSEGV, -signal.SIGKILL]
    assert (after["preloaded"], after["descriptions"]) == (False, 0), "kfp starts the steps itself after the process that forks was killed"
    ends = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [(event["step"], event["kind"]) for event in ends] == [("describe", "failed")] * 3, "of all but the one that says so itself"
    assert {event["facts"]["exit_code"] for event in ends} == {TemporaryFailure.exit_code}
    assert [event["facts"]["message"].split(",")[0] for event in ends] == [
        "its process was killed by SIGKILL",
        "its process was killed by SIGSEGV without a reason",
        "its process was killed by SIGKILL",
    ]
    assert "the step outlived the process that forks" not in runner["printed"]
    for step in (first, second):
        assert step["environment"] == {"_KFP_RUNTIME": "true", "CELEBDIT_LIFELINE": "/run/lifeline", "PYTHONSAFEPATH": "1"}
        assert step["folder"] == str(tmp_path)
        assert not {"", str(tmp_path / "root")} & set(step["path"])
        assert step["command"][-2:] == ["--function_to_execute", "describe"]
        assert (step["sigterm"], step["threads"]) == (str(signal.Handlers.SIG_DFL), 1)
        assert step["product"] == 600.0, "OpenBLAS computes after a fork"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="steps are forked on Linux alone")
def test_kfp_starts_the_steps_itself_where_a_thread_forbids_to_fork(tmp_path: Path) -> None:
    runner = run_steps(tmp_path, "threaded")
    assert not runner["seen"][0]["preloaded"]
    assert runner["statuses"] == [], "no step was forked"
    assert "ephemeral_component.py" in " ".join(runner["seen"][0]["command"])


@pytest.mark.parametrize(
    "script",
    [
        "python3 -m pip install kfp && _KFP_RUNTIME=true python3 -m kfp.dsl.executor_main",
        'program_path=$(mktemp -d)\nprintf "%s" "$0" > "$program_path/ephemeral_component.py"\n_KFP_RUNTIME=true python3 -m other "$@"',
        "true",
    ],
)
def test_an_unknown_command_is_left_to_kfp(script: str) -> None:
    steps = StepProcesses(None, 0)  # type: ignore[arg-type]  # it is not asked
    assert not steps.can_run(["sh", "-ec", script, "source", "--executor_input", "{}"])
