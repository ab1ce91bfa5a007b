"""The plan of a distillation: its teacher is looked up whenever the store can be read, and a refusal is shown with its hint."""

from pathlib import Path

import pytest

from components.errors import BadInput, StorageUnavailable
from components.storage import StoreUri
from components.storage.reader import StoredFolder
from components.stores.layout import StoreLayout
from pipeline.config import load_config
from pipeline.planning import steps
from pipeline.planning.steps import StoreView, plan_steps

STUDENT = load_config("smoke", [f"distill.teacher={'0' * 16}", "sampling.sampler=ddpm", "sampling.num_steps=4"])
LAYOUT = StoreLayout(StoreUri("bucket", "tests"))


def test_a_missing_teacher_is_planned_as_refused_before_there_is_a_dataset(tmp_path: Path) -> None:
    planned = plan_steps(STUDENT, StoreView(StoredFolder(tmp_path), LAYOUT)).steps
    assert [step.action for step in planned] == ["run", "run", "unknown", "run", "run", "run"]
    assert "there is no such training" in planned[2].reason
    assert planned[2].reason.partition("it will be refused ")[2].startswith("(name a run key as `celebdit run` prints it")


def test_the_plan_tells_all_lines_of_a_refusal_and_its_hint_in_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise BadInput("network.width is 8\nnetwork.depth is 2", hint="set both")

    monkeypatch.setattr(steps, "with_teacher", refuse)
    reason = plan_steps(STUDENT, StoreView(StoredFolder(tmp_path), LAYOUT)).steps[2].reason
    assert reason == "network.width is 8; network.depth is 2: it will be refused (set both)"


def test_a_store_that_does_not_answer_refuses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise StorageUnavailable("the store does not answer")

    monkeypatch.setattr(steps, "with_teacher", fail)
    assert plan_steps(STUDENT, StoreView(StoredFolder(tmp_path), LAYOUT)).steps[2].reason == "the store does not answer"
    unread = plan_steps(STUDENT, StoreView(None, LAYOUT, "it is not configured")).steps
    assert [step.action for step in unread[:3]] == ["run", "unknown", "unknown"]
