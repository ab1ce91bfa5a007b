"""What the command line shows: events, errors, the compiled graph."""

import io
import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

import pytest
import yaml
from celebdit_testing.submissions import run_cli
from rich.console import Console

from components.errors import DataRefused, Preempted, TemporaryFailure
from components.runtime.context import step
from components.runtime.events import Event, EventReader
from pipeline.commands.options import print_gate
from pipeline.compile import CompileOptions, compile_pipeline
from pipeline.config import load_config
from pipeline.images import Images
from pipeline.local import LocalOutcome
from pipeline.view import RunView, printable


def event(step: str, kind: str, at_s: float = 0.0, **facts: object) -> Event:
    return Event(step=step, kind=kind, at_s=at_s, facts=facts)  # type: ignore[arg-type]


def test_the_outcome_is_the_first_failure_with_its_exit_code_and_every_steps_time() -> None:
    outcome = LocalOutcome()
    for entry in (
        event("ingest", "started", 1.0),
        event("ingest", "result", manifest={"digest": "d"}),
        event("ingest", "finished", 3.5),
        event("train", "started", 4.0),
        event("train", "failed", 9.0, exit_code=3, message="loss is not finite", hint="lower the rate"),
        event("finalize", "started", 10.0),
        event("finalize", "failed", 11.0, exit_code=75, message="MLflow is unavailable", hint=None),
    ):
        outcome.add(entry)
    assert outcome.results == {"ingest": {"digest": "d"}}
    assert outcome.seconds == {"ingest": 2.5, "train": 5.0, "finalize": 1.0}
    assert isinstance(outcome.failure, DataRefused)
    assert outcome.failure.message == "train: loss is not finite"


def render(events: list[Event], *, terminal: bool) -> str:
    view = RunView(terminal=terminal)
    buffer = io.StringIO()
    view._console = Console(file=buffer, force_terminal=terminal, width=100)
    view._progress.live._live_render  # noqa: B018 - the live display exists before it is replaced
    view._progress.live.console = view._console
    with view:
        for entry in events:
            view(entry)
    return buffer.getvalue()


RUN = [
    event("train", "started", 1.0),
    event("train", "note", text="run \x1b[31mabc\x1b[0m: 10 steps"),
    event("train", "progress", done=5, total=10, text="loss 0.5"),
    event("train", "progress", done=10, total=10, text="loss 0.4"),
    event("train", "finished", 4.0),
]


def test_a_log_gets_plain_lines() -> None:
    text = render(RUN, terminal=False)
    assert "train: started" in text
    assert "train: 10/10 loss 0.4" in text
    assert "train: finished in 3.0 s" in text
    assert "\x1b" not in text


def test_a_terminal_gets_bars_and_data_cannot_drive_it() -> None:
    text = render(RUN, terminal=True)
    assert "10/10 loss 0.4" in text
    assert "✓" in text
    assert "\x1b[31mabc" not in text


@pytest.mark.parametrize("text", ["a\x1b[2Jb", "a\rb", "a\x07b", "a\x9b31mb", "a\u202eb"])
def test_control_characters_are_not_printed(text: str) -> None:
    assert printable(text).startswith("a?")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bogus"], "No such command 'bogus'"),
        (["demo", "--bogus"], "No such option"),
        (["demo", "training.total_steps=many"], "training.total_steps"),
        (["demo", "--source", "/does/not/exist"], "/does/not/exist does not exist"),
        (["run", "smok"], "neither a preset nor a file"),
        (["run"], "Missing argument"),
        (["run", "demo", "data.licence=CelebA"], "must be accepted"),
        (["models", "promote", "1"], "Missing option '--reason'"),
        (["compile", "demo", "-o", "x.txt"], "must end in .yaml"),
        (["compile", "demo", "-o", "/does/not/exist/x.yaml"], "cannot be written"),
        (["ui", "--mlflow-port", "99999"], "not in the range"),
        (["demo", "--home", "/dev/null/x"], "cannot be written"),
        (["config", "show", "nope.toml"], "nope.toml does not exist"),
        (["sample", "models:/m@champion", "--out", ""], "Invalid value for '--out': the path is empty"),
        (["compare", "1", "2", "--out", ""], "Invalid value for '--out': the path is empty"),
        (
            ["sample", "models:/m@champion", "--out", "a\nb.png"],
            "Invalid value for '--out': the path 'a\\nb.png' contains control characters",
        ),
        (["compile", "smoke", "--output", "a\x1b[2J.yaml"], "the path 'a\\x1b[2J.yaml' contains control characters"),
        (["models", "list", "--model", "a/b"], "'a/b' cannot be the name of a model"),
        (["models", "promote", "1", "--reason", "x", "--model", ".."], "'..' cannot be the name of a model"),
        (["models", "show", "champion", "--model", ""], "'' cannot be the name of a model"),
        (["import-checkpoint", "x.pth", "--model", "x" * 129], "cannot be the name of a model"),
        (["ema", "0" * 16, "--sigma-rel", "0.1", "--register", "models:/a"], "'models:/a' cannot be the name of a model"),
        (["run", "smoke", "resources.nodes=2"], "resources.nodes is 2, and this command runs on this machine alone"),
        (["demo", "resources.nodes=2"], "resources.nodes is 2, and this command runs on this machine alone"),
        (["ingest", "--source", "synthetic://x"], "takes parameters after a ? only, not 'x'"),
        (["ingest", "--source", "faces-\udcff"], r"data.source: 'faces-\udcff' is not UTF-8"),
        (["demo", "--source", "faces-\udcff"], "is not UTF-8"),
        (["ingest", "--source", "images", "--license", "\udcff"], r"data.licence: '\udcff' is not UTF-8"),
        (["run", "smoke", "data.\udcff=1"], "is not an override"),
        (["run", "smoke", 'data.source="faces-\udcff"'], "is not UTF-8"),
    ],
)
def test_bad_input_is_one_line_with_a_hint_and_exit_code_2(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    code, out, err = run_cli(capsys, *arguments)
    assert code == 2
    assert out == ""
    first, *rest = err.strip().splitlines()
    assert first.startswith("celebdit: ")
    assert message in first
    assert len(rest) <= 1
    assert "Traceback" not in err


@pytest.mark.parametrize("command", ["services status", "config show smoke", "ingest --source images", "models list"])
def test_a_deleted_current_folder_is_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.delenv("CELEBDIT_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "deleted"
    folder.mkdir()
    os.chdir(folder)
    folder.rmdir()
    code, _, err = run_cli(capsys, *command.split())
    assert (code, err.splitlines()) == (2, ["celebdit: the current folder was deleted", "  change to a folder that exists"])


def test_with_json_an_error_is_one_object_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run_cli(capsys, "config", "show", "smok", "--json")
    assert code == 2
    assert json.loads(out)["error"]["exit_code"] == 2


def test_help_and_version_are_fast_and_exit_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli(capsys, "--help")[0] == 0
    assert run_cli(capsys, "--version")[0] == 0
    loaded = (
        "import sys, pipeline.cli; print(sorted({m.split('.')[0] for m in sys.modules} & {'torch', 'mlflow', 'kfp', 'pandas', 'boto3'}))"
    )
    modules = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True).stdout
    assert modules.strip() == "[]"


def test_a_closed_stdout_ends_quietly() -> None:
    script = f"{sys.executable} -m pipeline.cli config show smoke | head -1"
    result = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert result.stdout == "[data]\n"
    assert "Traceback" not in result.stderr


def _settings(tables: Mapping[str, object], *above: str) -> dict[str, object]:
    """Every setting that has a value, by its whole name."""
    settings: dict[str, object] = {}
    for name, value in tables.items():
        if isinstance(value, Mapping) and len(above) < 1:
            settings |= _settings(value, *above, name)
        elif value is not None:
            settings[".".join([*above, name])] = value
    return settings


@pytest.mark.parametrize("preset", ["demo", "celebahq256-s"])
def test_config_show_prints_every_default(capsys: pytest.CaptureFixture[str], preset: str) -> None:
    resolved = _settings(load_config(preset, ["training.total_steps=50000"]).model_dump(mode="json"))
    written = _settings(tomllib.loads((files("pipeline") / "presets" / f"{preset}.toml").read_text()))
    defaults = resolved.keys() - written.keys()
    assert len(defaults) > 20, "most settings are written nowhere but in the code"
    code, out, err = run_cli(capsys, "config", "show", preset, "training.total_steps=50000")
    assert code == 0
    assert _settings(tomllib.loads(out)) == resolved
    code, out, _ = run_cli(capsys, "config", "show", preset, "training.total_steps=50000", "--json")
    assert code == 0
    assert _settings(json.loads(out)["config"]) == resolved
    assert f"digest {json.loads(out)['digest']}" in err


IMAGES = Images(cpu="registry.example/cpu@sha256:" + "a" * 64, gpu="registry.example/gpu@sha256:" + "b" * 64)


def compiled(folder: Path, preset: str = "demo", *overrides: str) -> tuple[str, dict, dict]:
    target = folder / "pipeline.yaml"
    compile_pipeline(load_config(preset, overrides), target, CompileOptions(images=IMAGES, preset=preset))
    text = target.read_text()
    spec, platform = yaml.safe_load_all(text)
    return text, spec, platform


def test_the_same_configuration_compiles_to_the_same_bytes(tmp_path: Path) -> None:
    first, again = compiled(tmp_path)[0], compiled(tmp_path)[0]
    script = "from pathlib import Path; from pipeline.compile import *; from pipeline.config import load_config; "
    script += f"images = Images.model_validate_json({IMAGES.model_dump_json()!r}); "
    script += f"compile_pipeline(load_config('demo'), Path({str(tmp_path / 'other.yaml')!r}), CompileOptions(images=images, preset='demo'))"
    subprocess.run([sys.executable, "-c", script], check=True, env={"PYTHONHASHSEED": "7", "PATH": "/usr/bin"}, capture_output=True)
    assert first == again == (tmp_path / "other.yaml").read_text()


def test_the_compiled_graph_is_the_documented_one(tmp_path: Path) -> None:
    _, spec, _ = compiled(tmp_path)
    root = spec["root"]["dag"]["tasks"]
    assert set(root) == {"finalize", "exit-handler-1"}
    handler = next(name for name in spec["components"] if name.startswith("comp-exit-handler"))
    tasks = spec["components"][handler]["dag"]["tasks"]
    condition_name = next(name for name in tasks if name.startswith("condition"))
    assert set(tasks) == {"preflight", "ingest", "train", "evaluate", "gate", condition_name}
    order = {name: sorted(set(task.get("dependentTasks", [])) - {"preflight"}) for name, task in tasks.items()}
    assert all("preflight" in task["dependentTasks"] for name, task in tasks.items() if name != "preflight")  # it gives each its sections
    assert order["ingest"] == []
    assert order["train"] == ["ingest"]
    assert order["evaluate"] == ["ingest", "train"]
    assert order["gate"] == ["evaluate"]
    condition = tasks[condition_name]
    assert "== 'pass'" in condition["triggerPolicy"]["condition"]
    assert root["finalize"]["triggerPolicy"]["strategy"] == "ALL_UPSTREAM_TASKS_COMPLETED"
    assert len(spec["root"]["inputDefinitions"]["parameters"]) <= 15


def test_every_input_is_described_for_the_ui(tmp_path: Path) -> None:
    _, spec, _ = compiled(tmp_path)
    for name in ("preflight", "ingest", "train", "evaluate", "gate", "register"):
        described = spec["components"][f"comp-{name}"]["inputDefinitions"]
        for kind in ("parameters", "artifacts"):
            for key, definition in described.get(kind, {}).items():
                assert definition.get("description"), f"{name}.{key} has no description"


def test_each_reason_of_a_gate_has_a_line_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    print_gate("pass", ["a is 1, at most 2 is required", "b is 3, at least 1 is required"])
    assert capsys.readouterr().err == "  gate       pass: a is 1, at most 2 is required\n             b is 3, at least 1 is required\n"


def test_a_step_that_was_asked_to_stop_is_interrupted_and_not_failed(tmp_path: Path) -> None:
    environment = {
        "CELEBDIT_EVENTS": str(tmp_path / "events.jsonl"),
        "CELEBDIT_STORE": "s3://bucket/x",
        "MLFLOW_TRACKING_URI": "http://127.0.0.1:9",
    }
    shown = {}
    for error in (Preempted("training was stopped at step 7"), TemporaryFailure("storage does not answer")):
        (tmp_path / "events.jsonl").write_text("")
        with (
            pytest.raises(SystemExit) as ended,
            step("train", {**environment, "CELEBDIT_WORK_DIR": str(tmp_path), "CELEBDIT_RUN_ID": "run-1"}),
        ):
            raise error
        assert ended.value.code == 75
        events = EventReader(tmp_path / "events.jsonl").read()
        shown[type(error)] = render(events, terminal=False).splitlines()[-1], "✗" in render(events, terminal=True)
    assert shown == {Preempted: ("train: interrupted", False), TemporaryFailure: ("train: failed", True)}


def test_a_line_that_all_runs_of_a_sweep_share_is_printed_once(capsys: pytest.CaptureFixture[str]) -> None:
    view = RunView(terminal=False)
    for text in ("MLflow: a", "run 1", "MLflow: a", "MLflow: b"):
        (view.print_once if text.startswith("MLflow") else view.print_line)(text)
    assert capsys.readouterr().err.splitlines() == ["MLflow: a", "run 1", "MLflow: b"]
