"""Storing the speed of a training neither fails it nor keeps a process that was asked to stop."""

import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from celebdit_testing.faults import Fault, fault_proxy, refusal
from celebdit_testing.recipes import tiny_recipe
from celebdit_testing.steps import notes, step_context

from components.manifests import DatasetManifest
from components.resources import ResourcesConfig
from components.runtime.context import StepContext
from components.runtime.launch import GRACE_S
from components.storage import StoreUri
from components.stores.measured_speed import SpeedRecorder, find_speed
from components.train.reporting import speed
from components.train.spec import TrainSpec

DATASET = DatasetManifest.model_construct(digest="d" * 64)
SPEC = TrainSpec.model_construct(
    run_key="k", attempt="a", dataset=DATASET, resources=ResourcesConfig(device="cpu"), features=None, **dict(tiny_recipe())
)
UNSTORED = "the speed of this training was not stored, plans of later ones will estimate it: "


def report(context: StepContext) -> float:
    """Report a speed and return the seconds that it took."""
    recorder = SpeedRecorder()
    for step, rate in enumerate((1.0, 90.0, 100.0)):
        recorder.add(step, {"perf/images_per_s": rate})
    started_s = time.monotonic()
    speed.report_speed(recorder, SPEC, torch.device("cpu"), context)
    return time.monotonic() - started_s


def test_a_speed_is_stored_for_plans(rclone_endpoint: str, prefix: StoreUri, tmp_path: Path) -> None:
    context = step_context("train", tmp_path, str(prefix), endpoint=rclone_endpoint)
    report(context)
    stored = find_speed(SPEC, SPEC.resources, speed.device_name(torch.device("cpu")), context.store, context.layout)
    assert stored is not None
    assert stored.images_per_s == 95.0
    assert notes(context) == []


@pytest.mark.parametrize("kind", ["refuses the connection", "hangs", "fails", "refuses the right"])
def test_a_store_that_fails_does_not_hold_up_a_stop(
    kind: str, rclone_endpoint: str, prefix: StoreUri, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The deadline of storage is that of files that a training cannot do without: 300 s, here 8 s, after which the thread ends."""
    assert speed._TIMEOUT_S <= GRACE_S / 5
    monkeypatch.setattr(speed, "_TIMEOUT_S", 1.0)
    with fault_proxy(rclone_endpoint) as proxy:
        if kind == "refuses the right":
            proxy.rule = lambda method, path, headers: refusal(403, "AccessDenied") if method == "PUT" else None
        elif kind != "refuses the connection":
            proxy.faults.append(Fault("slow" if kind == "hangs" else "500", "PUT", times=10**6, delay_s=20.0))
        endpoint = "http://127.0.0.1:9" if kind == "refuses the connection" else proxy.endpoint
        context = step_context("train", tmp_path, str(prefix), endpoint=endpoint)
        context = replace(context, settings=replace(context.settings, storage_deadline_s=8.0))
        assert report(context) < 5
        expected = "AccessDenied" if kind == "refuses the right" else "object storage did not answer within 1 s"
        (note,) = notes(context)
        assert note.startswith(UNSTORED)
        assert expected in note
