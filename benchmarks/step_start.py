"""What a step's pod costs beside its work, each step started as KFP's launcher starts it in a pod.

Each runs the command of the compiled component in a new process, with the embedded servers of a new home. None has work to do: dataset,
checkpoint and evaluation of `smoke` exist already, from a first run of each step that is not counted. Prints one JSON line per step:
medians of the time on the clock and of the processor time of the step's process. On a machine that others use, compare the processor time.

With `--than PYTHON`, the interpreter of another checkout's environment runs each step too, by turns, and its medians and the ratio of
the processor times are printed beside.

    python -m benchmarks.step_start [--repeat 5] [--than ../before/.venv/bin/python]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from components.evaluate.component import evaluate
from components.finalize.component import finalize
from components.gate.component import gate
from components.ingest.component import ingest
from components.manifests import EvaluationProtocol, EvaluationReport
from components.registry.config import RegistryConfig
from components.train.component import train
from pipeline.config import load_config
from pipeline.preflight_component import preflight
from pipeline.resolution import write_presets
from pipeline.session import open_session

_STATUS = {"state": "SUCCEEDED", "pipelineJobResourceName": "x", "pipelineTaskName": "steps"}


def main() -> None:
    """Print one JSON line per step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--than", type=Path, metavar="PYTHON")
    arguments = parser.parse_args()
    pythons = [Path(sys.executable), *([arguments.than] if arguments.than else [])]
    with tempfile.TemporaryDirectory(prefix="celebdit-step-start-") as folder, open_session(Path(folder) / "home") as session:
        environment = session.environment(run_id="step-start", preset="smoke")
        done = {name: Path(folder) / name / "first" for name in ("ingest", "train")}
        for name, component, read_inputs in (
            ("preflight", preflight, _preflight_inputs),
            ("ingest", ingest, lambda: {"data": load_config("smoke").sections()["data"]}),
            ("train", train, lambda: _train_inputs(done["ingest"])),
            ("evaluate", evaluate, lambda: _evaluate_inputs(done["ingest"], done["train"])),
            ("gate", gate, lambda: _gate_inputs(Path(folder))),
            ("finalize", finalize, lambda: {"status": _STATUS}),
        ):
            inputs, runs = read_inputs(), Path(folder) / name
            measure(component, inputs, runs / "first", environment, python=pythons[0])
            took: list[list[dict[str, float]]] = [[] for _ in pythons]
            for index in range(arguments.repeat):
                for number, python in enumerate(pythons):
                    took[number].append(measure(component, inputs, runs / f"{index}-{number}", environment, python=python))
            print(json.dumps({"step": name, **_summary(*took)}), flush=True)


def _summary(now: Sequence[Mapping[str, float]], before: Sequence[Mapping[str, float]] = ()) -> dict[str, float]:
    summary = {key: round(statistics.median(run[key] for run in now), 2) for key in now[0]}
    if before:
        summary |= {f"{key}_before": round(statistics.median(run[key] for run in before), 2) for key in before[0]}
        summary["cpu_ratio"] = round(statistics.median(new["cpu_s"] / old["cpu_s"] for new, old in zip(now, before, strict=True)), 2)
    return summary


def measure(component: Any, inputs: Mapping[str, Any], folder: Path, environment: Mapping[str, str], *, python: Path) -> dict[str, float]:
    """Run `component` as KFP's launcher does, with the environment of `python`, and return what it took."""
    container = component.component_spec.implementation.container
    executor_input = json.dumps(_executor_input(component, inputs, folder))
    words = [word if isinstance(word, str) else "" for word in (*container.command, *container.args)]
    command = [executor_input if word == "{{$}}" else word for word in words]
    path = f"{python.parent}:{os.environ['PATH']}"
    started_s = time.perf_counter()
    with subprocess.Popen(
        command, cwd=folder, env={**environment, "PATH": path}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
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


def _train_inputs(ingested: Path) -> dict[str, Any]:
    sections = load_config("smoke").sections()
    names = ("network", "diffusion", "optimizer", "training", "sampling", "resources")
    digest = _output(ingested)
    return {"dataset": ingested / "dataset", "dataset_digest": digest, **{name: sections[name] for name in names}}


def _evaluate_inputs(ingested: Path, trained: Path) -> dict[str, Any]:
    sections = load_config("smoke").sections()
    inputs = {"checkpoint": trained / "checkpoint", "dataset": ingested / "dataset"}
    digest = _output(trained)
    return {**inputs, "checkpoint_digest": digest, **{name: sections[name] for name in ("evaluation", "sampling", "resources", "registry")}}


def _output(folder: Path) -> str:
    return str(json.loads((folder / "output.json").read_text())["parameterValues"]["Output"])


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
