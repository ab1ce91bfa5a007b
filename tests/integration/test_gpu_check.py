"""The check of a GPU runs whole at toy size on the CPU, so that no second on a device is lost to a typing error."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu_check
from benchmarks.gpu_items import ITEMS, Item, Size

PASSING = {"training", "noise", "resume", "small_run"}


@pytest.mark.fault
@pytest.mark.slow
def test_it_runs_whole_at_toy_size(tmp_path: Path) -> None:
    out = tmp_path / "check.json"
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--toy", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads(out.read_text())
    assert list(report["items"]) == [item.name for item in ITEMS]
    assert {name for name, item in report["items"].items() if "passed" in item} == PASSING
    assert all(item.get("passed", True) for item in report["items"].values())
    assert report["items"]["training"]["speed"]["images_per_s"] > 0
    assert report["facts"]["toy"] is True
    distillation = report["items"]["distillation"]
    assert distillation["student"]["images_per_s"] > 0
    assert distillation["student"]["estimated_memory_gb"] > 1.5 * distillation["teacher"]["estimated_memory_gb"]


def toy() -> Size:
    return gpu_check._TOY


def test_the_report_is_complete_after_each_item_and_an_item_that_fails_stops_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, seen = tmp_path / "deep" / "check.json", []

    def look(size: Size) -> dict[str, object]:
        seen.append(list(json.loads(out.read_text())["items"]))
        return {"value": len(seen)}

    def fail(size: Size) -> dict[str, object]:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(gpu_check, "ITEMS", (Item("first", 1, look), Item("broken", 1, fail), Item("last", 1, look)))
    report = gpu_check.check(toy(), out, budget_s=100)
    assert seen == [[], ["first", "broken"]]
    assert report["items"]["broken"]["error"] == "OutOfMemoryError: no room"
    assert json.loads(out.read_text()) == report


def test_an_item_that_does_not_fit_the_budget_is_left_out_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check, "ITEMS", (Item("long", 60, lambda size: {}), Item("short", 1, lambda size: {"done": True})))
    monkeypatch.setattr(gpu_check, "facts", lambda size: {})
    on_a_gpu = gpu_check._FULL
    items = gpu_check.check(on_a_gpu, tmp_path / "check.json", budget_s=30)["items"]
    assert "it needs about 60 s" in items["long"]["left_out"]
    assert items["short"]["done"]


def test_without_a_gpu_it_says_how_to_try_it(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("torch sees a CUDA device here")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu_check", "--out", str(tmp_path / "x")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "use --toy" in done.stderr
