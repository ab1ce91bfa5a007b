"""Progress for Kubeflow Trainer: what is sent, and that training never waits for it."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from celebdit_testing.http_server import Handler, serving
from celebdit_testing.waiting import wait_until

from components.system.child_environment import child_environment
from components.train.reporting.trainjob_status import TrainJobStatus

VALUES = {"train/loss": 0.123456789, "perf/images_per_s": 50.0, "train/lr": 1e-4}


class Trainer(Handler):
    """Trainer's endpoint, which takes nothing but what its guide describes."""

    bodies: ClassVar[list[dict[str, Any]]] = []
    tokens: ClassVar[list[str]] = []
    status = 200
    answer_s = 0.0

    def do_POST(self) -> None:  # noqa: N802
        body = json.loads(self.content())
        time.sleep(self.answer_s)
        self.tokens.append(str(self.headers["Authorization"]))
        ((kind, status),) = body.items()
        well_formed = (
            (kind, self.path, self.headers["Content-Type"]) == ("trainerStatus", "/status/job", "application/json")
            and set(status) <= {"progressPercentage", "estimatedRemainingSeconds", "metrics", "lastUpdatedTime"}
            and isinstance(status["progressPercentage"], int)
            and 0 <= status["progressPercentage"] <= 100
            and isinstance(status.get("estimatedRemainingSeconds", 0), int)
            and all(set(entry) == {"name", "value"} and isinstance(entry["value"], str) for entry in status["metrics"])
            and time.strptime(status["lastUpdatedTime"], "%Y-%m-%dT%H:%M:%SZ")
        )
        self.bodies.append(status)
        self.answer(self.status if well_formed else 422)


@pytest.fixture
def environ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    (tmp_path / "token").write_text("first\n")
    monkeypatch.setattr(Trainer, "bodies", [])
    monkeypatch.setattr(Trainer, "tokens", [])
    with serving(Trainer) as address:
        yield {"KUBEFLOW_TRAINER_SERVER_URL": f"{address}/status/job", "KUBEFLOW_TRAINER_SERVER_TOKEN": str(tmp_path / "token")}


def reporter(environ: dict[str, str], notes: list[str], monkeypatch: pytest.MonkeyPatch, every_s: float = 0.01) -> TrainJobStatus:
    status = TrainJobStatus.from_environment(total_steps=200, batch_images=10, note=notes.append, environ=environ)
    assert status is not None
    status._every_s = every_s
    return status


def test_each_metric_point_is_reported_as_trainer_takes_it(
    environ: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes: list[str] = []
    status = reporter(environ, notes, monkeypatch)
    status.report(50, VALUES)
    wait_until(lambda: len(Trainer.bodies) == 1)
    (tmp_path / "token").write_text("second\n")  # Kubernetes has rotated it
    status.report(200, VALUES)
    wait_until(lambda: len(Trainer.bodies) == 2)  # closing alone waits no longer than a request may take
    status.close()
    first, last = Trainer.bodies
    assert (first["progressPercentage"], first["estimatedRemainingSeconds"]) == (25, 30)
    assert {entry["name"]: entry["value"] for entry in first["metrics"]} == {"step": "50", "loss": "0.123457", "images_per_s": "50"}
    assert (last["progressPercentage"], last["estimatedRemainingSeconds"]) == (100, 0)
    assert Trainer.tokens == ["Bearer first", "Bearer second"]
    assert notes == []


def test_a_slow_server_costs_training_nothing_and_gets_the_newest_point(environ: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trainer, "answer_s", 0.5)
    status = reporter(environ, [], monkeypatch)
    began_s = time.monotonic()
    for step in range(1, 101):
        status.report(step, VALUES)
    assert time.monotonic() - began_s < 0.4
    status.close()
    assert len(Trainer.bodies) <= 3
    assert Trainer.bodies[-1]["progressPercentage"] == 50


@pytest.mark.parametrize("fault", ["refused", "absent", "no token"])
def test_a_failure_is_noted_once_and_not_raised(fault: str, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    notes: list[str] = []
    if fault == "refused":
        monkeypatch.setattr(Trainer, "status", 403)
    elif fault == "absent":
        environ["KUBEFLOW_TRAINER_SERVER_URL"] = "http://127.0.0.1:9/status/job"
    else:
        Path(environ["KUBEFLOW_TRAINER_SERVER_TOKEN"]).unlink()
    status = reporter(environ, notes, monkeypatch)
    status.report(1, VALUES)
    wait_until(lambda: len(notes) == 1)
    status.report(2, VALUES)
    status.close()
    assert len(notes) == 1
    assert "was not reported to Kubeflow Trainer" in notes[0]


def test_ranks_get_what_trainer_sets_and_elsewhere_nothing_is_sent(environ: dict[str, str]) -> None:
    assert child_environment("rank", environ).items() >= environ.items()
    assert TrainJobStatus.from_environment(total_steps=1, batch_images=1, note=print, environ={}) is None
