"""The complete pipeline as a user runs it: real KFP graph, real S3, real MLflow, real torchrun."""

import base64
import io
import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from celebdit_testing.command import COMMAND, Finished, celebdit, celebdit_here
from celebdit_testing.first_run import FirstRun
from celebdit_testing.waiting import wait_until
from mlflow import MlflowClient
from PIL import Image

from components.runtime.events import EventReader
from components.system.ports import free_port, http_status
from components.system.process import spawn, stop
from pipeline.local import EVENTS_FILE
from pipeline.services import Endpoints, Services
from pipeline.steps import step_names

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def client(embedded: Services) -> MlflowClient:
    return MlflowClient(embedded.wait().mlflow_url)


def runs(client: MlflowClient, **tags: str) -> list[Any]:
    experiment = client.get_experiment_by_name("celebdit")
    condition = " and ".join(f"tags.`{key.replace('__', '.')}` = '{value}'" for key, value in tags.items())
    return list(client.search_runs([experiment.experiment_id], condition))


def test_the_smoke_preset_runs_from_source_to_registry(first_run: Finished) -> None:
    assert first_run.code == 0, first_run.err
    facts = first_run.json
    assert facts["dataset"]["num_images"] == 48
    assert len(facts["dataset"]["digest"]) == len(facts["checkpoint"]["digest"]) == 64
    assert facts["training_steps"] == 12
    assert facts["score"]["name"] == "eval/fd_randconv_16"
    assert facts["score"]["value"] > 0
    assert facts["gate"]["decision"] == "pass"
    assert facts["model"] == {"name": "celebdit-smoke", "version": "1", "aliases": ["challenger"]}
    assert facts["mlflow"]["model_uri"] == "models:/celebdit-smoke/1"
    assert facts["mlflow"]["run_url"].startswith(facts["mlflow"]["tracking_uri"])
    assert set(facts["seconds"]) == set(step_names())
    assert all(seconds > 0 for seconds in facts["seconds"].values())
    assert np.asarray(Image.open(facts["samples"])).shape == (256, 1024, 3)


def test_a_run_leaves_no_temporary_folder(watched_first_run: FirstRun) -> None:
    assert any("/" in name and not name.endswith(".lock") for name in watched_first_run.temporary_seen), "the steps made some"
    assert watched_first_run.temporary_left == []


def test_the_output_for_people_is_on_stderr_and_says_where_to_look(first_run: Finished) -> None:
    for line in (
        "ingest: 48/48 images, 0 rejected",
        "train: 12/12 steps, loss ",
        "celebdit-smoke version 1, challenger",
        "celebdit models promote 1",
    ):
        assert line in first_run.err
    assert first_run.json["mlflow"]["run_url"] in first_run.err
    assert "preflight: disk: " in first_run.err
    assert "preflight: credentials: " not in first_run.err, "the embedded servers have theirs"
    json.loads(first_run.out)


def test_commands_about_a_training_take_the_names_that_a_run_prints(
    first_run: Finished, embedded: Services, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in (first_run.json["run_key"][:5], first_run.json["run_id"]):
        commands = {
            "sync": (),
            "ema": ("--sigma-rel", "0.07", "--steps", "1"),
            "sample": ("--steps", "2", "--count", "1", "--out", str(tmp_path / "one.png")),
        }
        for command, options in commands.items():
            done = celebdit_here(command, name, *options, home=embedded.home, capture=capsys)
            assert done.code == 0, done.err
            assert first_run.json["run_key"] in done.err, command


def test_the_progress_of_each_step_reaches_its_end_once(first_run: Finished, embedded: Services) -> None:
    progress: dict[str, list[tuple[int, int]]] = {}
    for event in EventReader(embedded.home / "runs" / first_run.json["run_id"] / EVENTS_FILE).read():
        if event.kind == "progress":
            progress.setdefault(event.step, []).append((event.facts["done"], event.facts["total"]))
    assert set(progress) == {"ingest", "train", "evaluate"}
    for step, reports in progress.items():
        assert [done == total for done, total in reports].index(True) == len(reports) - 1, step
        assert [done for done, _ in reports] == sorted(done for done, _ in reports), step


def test_mlflow_holds_the_run_its_steps_metrics_and_samples(first_run: Finished, client: MlflowClient) -> None:
    facts = first_run.json
    (parent,) = runs(client, celebdit__pipeline_run=facts["run_id"], celebdit__kind="pipeline")
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["preset"] == "smoke"
    assert parent.data.metrics[facts["score"]["name"]] == facts["score"]["value"]
    assert parent.info.run_name == "smoke x-pred lr1e-3 s0"
    assert (parent.data.params["training.total_steps"], parent.data.params["evaluation.num_images"]) == ("12", "16")
    assert len(parent.data.params) <= 40
    assert parent.inputs.dataset_inputs[0].dataset.name == "smoke-faces"
    assert "grid.png" in {item.path for item in client.list_artifacts(parent.info.run_id)}
    note = parent.data.tags["mlflow.note.content"]
    for part in (
        f"{facts['score']['name']} ",
        " ± ",
        "pure noise scores",
        "Gate: **pass**",
        facts["run_key"],
        "[celebdit-smoke 1]",
        "![samples]",
    ):
        assert part in note, part
    children = {run.data.tags["celebdit.step"]: run for run in runs(client, celebdit__pipeline_run=facts["run_id"], celebdit__kind="step")}
    assert set(children) == {"ingest", "train", "evaluate", "gate", "register"}
    assert {run.info.status for run in children.values()} == {"FINISHED"}
    assert {run.data.tags["mlflow.parentRunId"] for run in children.values()} == {parent.info.run_id}
    train = children["train"]
    assert train.data.tags["celebdit.run_key"] == facts["run_key"]
    assert train.inputs.dataset_inputs[0].dataset.digest == facts["dataset"]["digest"][:32]
    assert len(train.data.params) <= 40
    for key, steps in {
        "train/loss": [4, 8, 12],
        "train/lr": [4, 8, 12],
        "perf/images_per_s": [4, 8, 12],
        facts["score"]["name"]: [12],
    }.items():
        assert [point.step for point in client.get_metric_history(train.info.run_id, key)] == steps, key
    artifacts = {item.path for item in client.list_artifacts(train.info.run_id, "images")}
    for key in ("samples~ema_grid", "samples~seed_000", "samples~seed_007"):
        for step in (6, 12):
            assert len([path for path in artifacts if f"{key}+step+{step}+" in path and path.endswith(".png")]) == 1


def test_an_evaluated_checkpoint_is_in_mlflow_with_its_numbers(first_run: Finished, client: MlflowClient) -> None:
    facts = first_run.json
    experiment = client.get_experiment_by_name("celebdit")
    (model,) = client.search_logged_models([experiment.experiment_id], f"tags.`checkpoint.digest` = '{facts['checkpoint']['digest']}'")
    assert {metric.key: metric.value for metric in model.metrics} == facts["metrics"]
    version = client.get_model_version("celebdit-smoke", "1")
    assert len(version.tags) <= 8
    assert version.description.startswith(f"**{facts['score']['name']} ")
    assert "\n\n![samples](get-artifact?path=grid.png&run_uuid=" in version.description
    assert version.tags["checkpoint.digest"] == facts["checkpoint"]["digest"]
    assert version.tags["dataset.digest"] == facts["dataset"]["digest"]
    assert facts["dataset"]["digest"] in version.description


def test_nothing_in_the_registered_version_is_pickled(first_run: Finished, endpoints: Endpoints, tmp_path: Path) -> None:
    from mlflow.artifacts import download_artifacts

    folder = Path(download_artifacts("models:/celebdit-smoke/1", dst_path=str(tmp_path)))
    names = {path.name for path in folder.rglob("*") if path.is_file()}
    assert [name for name in names if name.endswith(".safetensors")]
    assert not [name for name in names if name.endswith((".pkl", ".pickle", ".pt", ".pth", ".bin"))]


def test_a_second_run_reuses_what_is_finished(first_run: Finished, embedded: Services, client: MlflowClient) -> None:
    again = celebdit("run", "smoke", "--json", home=embedded.home)
    assert again.code == 0, again.err
    for key in ("run_key", "dataset", "checkpoint", "score", "model"):
        assert again.json[key] == first_run.json[key]
    assert again.json["run_id"] != first_run.json["run_id"]
    assert again.err.count("nothing to do") == 4
    assert len(client.search_model_versions("name = 'celebdit-smoke'")) == 1
    assert len(runs(client, celebdit__run_key=first_run.json["run_key"], celebdit__step="train")) == 1


def test_promotion_moves_champion_and_is_remembered(first_run: Finished, embedded: Services, capsys: pytest.CaptureFixture[str]) -> None:
    def models(*arguments: str) -> Finished:
        return celebdit_here("models", *arguments, "--model", "celebdit-smoke", "--json", home=embedded.home, capture=capsys)

    promoted = models("promote", "1", "--reason", "it draws faces")
    assert promoted.code == 0, promoted.err
    assert promoted.json == {"model": "celebdit-smoke", "champion": "1", "previous": None}
    assert {"challenger", "champion"} <= set(models("list").json["versions"][0]["aliases"])
    (move,) = models("history").json["moves"]
    assert (move["action"], move["version"], move["reason"]) == ("promote", "1", "it draws faces")
    absent = models("promote", "9", "--reason", "x")
    assert absent.code == 2
    assert "has no version '9'" in absent.err


@pytest.fixture
def served(first_run: Finished, endpoints: Endpoints) -> Iterator[str]:
    """`mlflow models serve` on the registered version."""
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/celebdit-smoke/1", "--env-manager", "local"]
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "MLFLOW_DISABLE_TELEMETRY": "true"}
    process = spawn(
        [*command, "--host", "127.0.0.1", "--port", str(port)], environment=environment, stdout=subprocess.DEVNULL, new_group=True
    )
    try:
        wait_until(lambda: http_status(f"http://127.0.0.1:{port}/ping"), timeout_s=120, every_s=0.3, alive=lambda: process.poll() is None)
        yield f"http://127.0.0.1:{port}"
    finally:
        stop(process, grace_s=10)


def ask(server: str, body: object) -> Any:
    request = urllib.request.Request(f"{server}/invocations", json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)


def test_mlflow_serves_the_version_and_answers_with_png_images(served: str) -> None:
    answer = ask(served, {"dataframe_records": [{"seed": 3}, {"seed": 4}], "params": {"num_steps": 3, "sampler": "heun"}})["predictions"]
    images = [base64.b64decode(row["image"]) for row in answer]
    assert [row["seed"] for row in answer] == [3, 4]
    for data in images:
        assert Image.open(io.BytesIO(data)).format == "PNG"
        assert np.asarray(Image.open(io.BytesIO(data))).shape == (32, 32, 3)
    assert images[0] != images[1]
    alone = ask(served, {"dataframe_records": [{"seed": 4}], "params": {"num_steps": 3, "sampler": "heun"}})["predictions"]
    assert base64.b64decode(alone[0]["image"]) == images[1]
    for wrong, reason in (
        ({"num_steps": 0}, "num_steps 0 must lie between 1 and 1000"),
        ({"num_steps": 10**6}, "num_steps 1000000 must lie between 1 and 1000"),
        ({"sampler": "bogus"}, "sampler 'bogus' is not one of"),
    ):
        with pytest.raises(urllib.error.HTTPError) as refused:
            ask(served, {"dataframe_records": [{"seed": 3}], "params": wrong})
        assert refused.value.code == 400
        assert reason in json.load(refused.value)["message"]


@pytest.mark.fault
@pytest.mark.slow
def test_a_gate_that_fails_registers_nothing_and_exits_1(second_run: Finished, client: MlflowClient) -> None:
    assert second_run.code == 1, second_run.err
    assert second_run.json["gate"]["decision"] == "fail"
    assert second_run.json["model"] is None
    assert client.search_model_versions("name = 'celebdit-never'") == []


@pytest.mark.fault
@pytest.mark.slow
def test_scores_during_training_come_from_the_pipeline_to_mlflow(second_run: Finished, client: MlflowClient) -> None:
    (train,) = runs(client, celebdit__pipeline_run=second_run.json["run_id"], celebdit__step="train")
    scores = client.get_metric_history(train.info.run_id, "score/mind_randconv_16")
    assert [point.step for point in scores] == [12, 24]
    assert all(point.value > 0 for point in scores)
    (parent,) = runs(client, celebdit__pipeline_run=second_run.json["run_id"], celebdit__kind="pipeline")
    assert parent.data.params["training.scores"] == "mind of 16 images every 12 steps"


def descendants_of(folder: Path) -> list[psutil.Process]:
    """Living processes that have `folder` in their command line or environment."""
    descendants = []
    for process in psutil.process_iter(["cmdline", "environ", "status"]):
        text = " ".join(process.info["cmdline"] or []) + " ".join((process.info["environ"] or {}).values())
        if str(folder) in text and process.info["status"] != psutil.STATUS_ZOMBIE and process.pid != os.getpid():
            descendants.append(process)
    return descendants


@pytest.mark.fault
@pytest.mark.slow
def test_ctrl_c_in_the_middle_saves_closes_and_leaves_nothing_running(embedded: Services, client: MlflowClient) -> None:
    home, earlier = embedded.home, set((embedded.home / "runs").glob("smoke-*"))
    arguments = ["training.total_steps=100000", "training.checkpoint_every_s=1000.0", "training.seed=77"]
    process = subprocess.Popen([*COMMAND, "run", "smoke", *arguments, "--home", str(home)], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("train: ") and "/100000" in line:
            break
    own = [folder for folder in set((home / "runs").glob("smoke-*")) - earlier if 'seed\\":77' in (folder / "arguments.json").read_text()]
    process.send_signal(signal.SIGINT)
    errors = process.stderr.read()
    assert process.wait(timeout=90) == 130
    assert "train: interrupted" in errors
    assert "failed" not in errors
    assert "Traceback" not in errors
    (folder,) = own
    assert descendants_of(folder) == []
    runs_by_step = {run.data.tags.get("celebdit.step", "pipeline"): run for run in runs(client, celebdit__pipeline_run=folder.name)}
    assert runs_by_step["train"].info.status == runs_by_step["pipeline"].info.status == "KILLED"
    assert "RUNNING" not in {run.info.status for run in runs_by_step.values()}
    key = runs_by_step["train"].data.tags["celebdit.run_key"]
    assert list(home.glob(f"s3/celebdit/main/runs/{key}/checkpoints/*/*/COMMIT.json")), "the step had time to save"
