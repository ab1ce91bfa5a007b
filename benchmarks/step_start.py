"""What a step's pod costs beside its work: preflight, ingest, gate and finalize, each started as KFP's launcher starts it in a pod.

Each runs the command of the compiled component in a new process, with the embedded servers of a new home. None has work to do: the
dataset exists already. Prints one JSON line per step: medians of the time on the clock and of the processor time of the step's process.
On a machine that others use, compare the processor time.

    python -m benchmarks.step_start [--repeat 5]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from components.finalize.component import finalize
from components.gate.component import gate
from components.ingest.component import ingest
from components.manifests import EvaluationProtocol, EvaluationReport
from components.registry.config import RegistryConfig
from pipeline.config import load_config
from pipeline.preflight_component import preflight
from pipeline.resolution import write_presets
from pipeline.session import open_session

_STATUS = {"state": "SUCCEEDED", "pipelineJobResourceName": "x", "pipelineTaskName": "steps"}


def main() -> None:
    """Print one JSON line per step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=5)
    repeat = parser.parse_args().repeat
    with tempfile.TemporaryDirectory(prefix="celebdit-step-start-") as folder, open_session(Path(folder) / "home") as session:
        environment = session.environment(run_id="step-start", preset="smoke")
        for name, component, inputs in (
            ("preflight", preflight, _preflight_inputs()),
            ("ingest", ingest, {"data": load_config("smoke").sections()["data"]}),
            ("gate", gate, _gate_inputs(Path(folder))),
            ("finalize", finalize, {"status": _STATUS}),
        ):
            runs = [measure(component, inputs, Path(folder) / name / str(index), environment) for index in range(repeat + 1)][1:]
            print(json.dumps({"step": name, **{key: round(statistics.median(run[key] for run in runs), 2) for key in runs[0]}}), flush=True)


def measure(component: Any, inputs: Mapping[str, Any], folder: Path, environment: Mapping[str, str]) -> dict[str, float]:
    """Run `component` as KFP's launcher does and return what it took."""
    container = component.component_spec.implementation.container
    executor_input = json.dumps(_executor_input(component, inputs, folder))
    words = [word if isinstance(word, str) else "" for word in (*container.command, *container.args)]
    command = [executor_input if word == "{{$}}" else word for word in words]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    started_s = time.perf_counter()
    with subprocess.Popen(command, env={**environment, "PATH": path}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        assert process.stdout is not None
        output = process.stdout.read().decode()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(output)
    return {"clock_s": time.perf_counter() - started_s, "cpu_s": usage.ru_utime + usage.ru_stime}


def _executor_input(component: Any, inputs: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return what KFP's launcher hands to the executor; a value that is a path is an input artifact."""
    folder.mkdir(parents=True)
    spec = component.component_spec
    outputs, artifacts = {}, {}
    for name, output in (spec.outputs or {}).items():
        if "@" in str(output.type):
            artifacts[name] = {"artifacts": [_artifact(name, folder / name, str(output.type).partition("@")[0])]}
        else:
            outputs[name] = {"outputFile": str(folder / f"{name}.txt")}
    paths = {name: value for name, value in inputs.items() if isinstance(value, Path)}
    return {
        "inputs": {
            "parameterValues": {name: value for name, value in inputs.items() if name not in paths},
            "artifacts": {name: {"artifacts": [_artifact(name, path, "system.Artifact")]} for name, path in paths.items()},
        },
        "outputs": {"parameters": outputs, "artifacts": artifacts, "outputFile": str(folder / "output.json")},
    }


def _artifact(name: str, path: Path, kind: str) -> dict[str, Any]:
    return {"name": name, "uri": str(path), "metadata": {}, "type": {"schemaTitle": kind}}


def _preflight_inputs() -> dict[str, str]:
    return {
        "presets": write_presets({"smoke": load_config("smoke").sections()}),
        "preset": "smoke",
        "overrides": "",
        "licence_accepted_by": "",
    }


def _gate_inputs(folder: Path) -> dict[str, Any]:
    return {"report": report_file(folder / "report.json"), "gate": "{}", "registry": RegistryConfig().model_dump_json()}


def report_file(path: Path) -> Path:
    """Write the report of an evaluation that has no champion."""
    protocol = EvaluationProtocol(
        name="custom", num_images=16, num_reference=20, reference_split="all", reference_flip=False, dataset_digest="d" * 64, image_px=16,
        codec="png", resize="none", extractor="celebdit-random-conv-1", extractor_sha256=None, metrics=("frechet",),
        bootstrap_replicates=20, sampling={"sampler": "euler", "num_steps": 2}, ema="0.1", checkpoint_digest="c" * 64,
        checkpoint_step=10,
    )  # fmt: skip
    report = EvaluationReport(
        uri="evaluations/x", protocol_digest="a" * 64, protocol=protocol, run_key="k", checkpoint_uri="runs/k", checkpoint_digest="c" * 64,
        checkpoint_step=10, dataset_digest="d" * 64, headline="eval/fid_50k", metrics={"eval/fid_50k": 10.0}, grid_uri="evaluations/x/g",
    )  # fmt: skip
    report.dump(path)
    return path


if __name__ == "__main__":
    main()
