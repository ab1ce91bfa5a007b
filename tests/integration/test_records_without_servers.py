"""MLflow's records while no server runs: read and written in the process of the command, and the same that a server reads and writes."""

import io
import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from celebdit_testing.command import celebdit_here
from celebdit_testing.registered import bare_versions, registry_context
from PIL import Image

from components.errors import BadInput, TrackingRefused
from components.reports.image_grid import SAMPLE_GRID_KEY
from components.runtime.context import StepContext
from components.storage import StoreUri
from components.tracking.offline import OfflineTracking
from components.tracking.tags import TAG_RUN_KEY, TAG_STEP
from pipeline.records import open_records
from pipeline.server_commands import MLFLOW_ARTIFACTS
from pipeline.services import Endpoints, Services

MODEL = ("--model", "faces")


pytestmark = pytest.mark.usefixtures("no_endpoints")


def is_started(home: Path) -> bool:
    """Whether a server was ever started: each writes a log."""
    return bool(Services(home).running_servers()) or any((home / "logs").iterdir())


def test_commands_about_versions_start_no_server_and_a_server_sees_what_they_did(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"

    def models(*arguments: str) -> Any:
        finished = celebdit_here("models", *arguments, *MODEL, "--json", home=home, capture=capfd)
        assert finished.code == 0, finished.err
        return finished.json

    assert models("list")["versions"] == []
    with open_records(home) as context:
        bare_versions(context, "faces", 2)
        experiment = context.tracking.client.get_experiment(context.tracking.experiment_id)
        assert experiment.artifact_location == f"mlflow-artifacts:/{experiment.experiment_id}", "artifacts go through the server later"
    models("promote", "1", "--reason", "first")
    models("promote", "2", "--reason", "second")
    assert models("rollback", "--reason", "worse")["champion"] == "1"
    assert [version["version"] for version in models("list")["versions"]] == ["1", "2"]
    shown = models("show", "champion")
    assert (shown["version"], shown["url"]) == ("1", None)
    moves = models("history")["moves"]
    assert [move["reason"] for move in moves] == ["first", "second", "worse"]
    assert not is_started(home)
    assert sorted(path.name for path in home.iterdir()) == [".gitignore", "logs", "mlflow.db", "s3", "services.lock"]
    services = Services(home)
    with services.use():
        services.wait()
        assert models("history")["moves"] == moves
        assert models("show", "champion")["url"].startswith(services.running_servers()["mlflow"].url), "the server is asked while it runs"
        models("promote", "2", "--reason", "by the server")
    assert models("history")["moves"][-1]["reason"] == "by the server"
    assert services.running_servers() == {}


def test_no_server_starts_while_the_records_are_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    services, events = Services(tmp_path / "home"), list[str]()
    monkeypatch.setattr(Services, "_spawn", lambda *args, **named: events.append("spawned") or 1 / 0)

    def start() -> None:
        with pytest.raises(ZeroDivisionError):
            services.start(stay=False)

    with open_records(services.home):
        starter = threading.Thread(target=start)
        starter.start()
        starter.join(0.5)
        assert starter.is_alive()
        events.append("closed")
    starter.join(60)
    assert events == ["closed", "spawned"]


@pytest.mark.parametrize("name", ["a?b", "50%20"])
def test_a_home_that_mlflow_cannot_address_gets_a_server(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Services, "start", lambda *args, **named: (_ for _ in ()).throw(BadInput("a server is started")))
    with pytest.raises(BadInput, match="a server is started"), open_records(tmp_path / name):
        pass


def test_a_damaged_database_is_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    home = tmp_path / "home"
    assert celebdit_here("models", "list", home=home, capture=capfd).code == 0
    database = home / "mlflow.db"
    database.write_bytes(database.read_bytes()[:9000])
    finished = celebdit_here("models", "list", home=home, capture=capfd)
    assert finished.code == 3
    assert "is damaged" in finished.err


def trained_run(context: StepContext, run_key: str, lr_peak: float) -> str:
    """A run of a training as MLflow's server keeps it, with its configuration and one image of samples."""
    client = context.tracking.client
    tags = {TAG_STEP: "train", TAG_RUN_KEY: run_key}
    run = client.create_run(context.tracking.experiment_id, tags=tags, run_name="train")
    client.log_metric(run.info.run_id, "perf/images_per_s", 7.0)
    client.set_terminated(run.info.run_id)
    folder = f"artifacts/{run.info.experiment_id}/{run.info.run_id}/artifacts"
    spec = {"optimizer": {"lr_peak": lr_peak}, "dataset": {"digest": "d", "name": "faces"}}
    context.store.put_bytes(StoreUri("mlflow", f"{folder}/config/train.json"), json.dumps(spec).encode())
    image = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(image, "PNG")
    name = f"{SAMPLE_GRID_KEY.replace('/', '~')}%step%5%timestamp%1%0a.png"
    context.store.put_bytes(StoreUri("mlflow", f"{folder}/images/{name}"), image.getvalue())
    return str(run.info.run_id)


def test_compare_needs_no_mlflow_server(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    home, keys = tmp_path / "home", ("a" * 16, "b" * 16)
    with open_records(home, artifacts=True) as context:
        for run_key, lr_peak in zip(keys, (0.1, 0.2), strict=True):
            trained_run(context, run_key, lr_peak)
    finished = celebdit_here("compare", *keys, "--out", str(tmp_path / "c.png"), "--json", home=home, capture=capfd)
    assert finished.code == 0, finished.err
    assert finished.json["steps"] == [5]
    assert {"kind": "setting", "name": "optimizer.lr_peak", "values": ["0.1", "0.2"]} in finished.json["rows"]
    assert finished.json["mlflow"] is None
    assert (tmp_path / "c.png").exists()
    assert not (home / "logs" / "mlflow.log").exists()
    assert Services(home).running_servers() == {}


def test_artifacts_are_found_where_the_server_keeps_them(endpoints: Endpoints, tmp_path: Path) -> None:
    context = registry_context(endpoints, tmp_path)
    run_id = context.tracking.client.create_run(context.tracking.experiment_id).info.run_id
    context.tracking.log_text(run_id, "one", "notes/a.txt")
    context.tracking.log_text(run_id, "two", "notes/deeper/b.txt")
    context.tracking.log_image(run_id, np.zeros((4, 4, 3), np.uint8), key="eval/grid", step=3)
    offline = OfflineTracking(context.settings, lambda: context.store, StoreUri.parse(MLFLOW_ARTIFACTS))
    assert offline.artifact_paths(run_id, "notes") == ["notes/a.txt"]
    images = offline.image_paths(run_id)
    assert images == sorted(context.tracking.image_paths(run_id))
    assert images
    for path in ("notes/a.txt", *images):
        assert offline.read_artifact(run_id, path) == context.tracking.read_artifact(run_id, path)
    with pytest.raises(TrackingRefused, match="no artifact notes/c"):
        offline.read_artifact(run_id, "notes/c.txt")
