"""Benchmarks that measure processes count all of them, and those that compare samplers or students run on real networks."""

import json
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from celebdit_testing.recipes import tiny_pack
from safetensors.torch import save_file

from benchmarks import few_steps, students
from benchmarks.command_cost import measure, summary
from model.denoiser import build_denoiser
from model.sampler_table import SAMPLERS
from pipeline.config import load_config

DETACHED = """
import subprocess, sys
busy = "import time; began = time.process_time()\\nwhile time.process_time() < began + 0.5: pass"
subprocess.Popen([sys.executable, "-c", busy], start_new_session=True)
raise SystemExit(int(sys.argv[1]))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only there can a process adopt what others leave")
def test_the_cost_of_a_command_counts_the_process_that_it_leaves() -> None:
    began_s = time.process_time()
    took = measure([sys.executable, "-c", DETACHED, "0"])
    assert took["cpu_s"] > 0.5
    assert took["clock_s"] < took["cpu_s"] + 0.5, "the clock is that of the command"
    assert time.process_time() - began_s < 0.4
    with pytest.raises(SystemExit):
        measure([sys.executable, "-c", DETACHED, "3"])


LATE = """
import subprocess, sys
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(0.5); print('{}', end=chr(10) * 2)"], start_new_session=True)
print("no line end", end="")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only there can a process adopt what others leave")
@pytest.mark.parametrize("code", ["", "print('{\"cpu_s\": 1}', end='')", "import os; os.write(1, bytes(range(256)))", LATE])
def test_the_cost_of_a_command_does_not_depend_on_what_it_prints(code: str) -> None:
    took = measure([sys.executable, "-c", code])
    assert set(took) == {"clock_s", "cpu_s"}
    assert took["cpu_s"] > 0


def test_a_command_that_fails_is_shown_with_its_output() -> None:
    with pytest.raises(SystemExit, match="what went wrong"):
        measure([sys.executable, "-c", "raise SystemExit('what went wrong')"])


def test_costs_are_compared_by_turns() -> None:
    now, before = ([{"clock_s": 1.0, "cpu_s": cpu_s} for cpu_s in runs] for runs in ((1.0, 9.0, 3.0), (2.0, 10.0, 4.0)))
    assert summary(now, before) == {"clock_s": 1.0, "cpu_s": 3.0, "clock_s_before": 1.0, "cpu_s_before": 4.0, "cpu_ratio": 0.75}


def test_samplers_are_compared_at_few_network_calls_on_stored_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config("smoke")
    weights, images, out = tmp_path / "ema.safetensors", tmp_path / "images.npy", tmp_path / "few.json"
    torch.manual_seed(0)
    network = {name: torch.randn_like(value) * 0.05 for name, value in build_denoiser(config.network).state_dict().items()}
    save_file(network, weights)
    np.save(images, np.array(tiny_pack(tmp_path / "pack", count=12, image_px=config.network.image_px).images))
    monkeypatch.setattr(few_steps, "settings", lambda: [("heun", 4, 1.0), ("euler", 4, 2.0)])
    command = ["few_steps", "--preset", "smoke", "--weights", weights, "--images", images, "--count", "8", "--out", out]
    monkeypatch.setattr(sys, "argv", [str(word) for word in command])
    few_steps.main()
    heun, euler = json.loads(out.read_text())
    assert [(row["sampler"], row["steps"], row["time_shift"]) for row in (heun, euler)] == [("heun", 2, 1.0), ("euler", 4, 2.0)]
    assert heun["distance"] != euler["distance"] > 0
    assert all(np.isfinite(value) for row in (heun, euler) for value in row.values() if isinstance(value, float))


def test_each_sampler_takes_as_many_steps_as_its_calls_allow() -> None:
    for sampler, calls, _ in few_steps.settings():
        steps = few_steps.steps_within(sampler, calls)
        assert SAMPLERS[sampler].calls(steps) <= calls < SAMPLERS[sampler].calls(steps + 1)


def test_a_student_is_measured_beside_its_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, sizes = tmp_path / "students.json", ["--turns", "3", "--steps", "1", "--images", "8", "--student-steps", "4", "2"]
    monkeypatch.setattr(sys, "argv", ["students", "--preset", "smoke", *sizes, "--out", str(out)])
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)  # of the other tests in this process
    students.main()
    report = json.loads(out.read_text())
    rows = [(row["weights"], row["sampler"], row["steps"], row["calls"]) for row in report["drawing"]]
    few = [(role, sampler, steps, steps) for role, sampler in (("teacher", "unipc"), ("student", "ddpm")) for steps in (4, 2)]
    assert rows == [("teacher", "euler", 2, 2), *few]
    four, two = (next(row["cpu_s_per_1000_images"]["median"] for row in report["drawing"][3:] if row["steps"] == steps) for steps in (4, 2))
    assert four > 1.3 * two, "twice the calls"
    assert report["training"]["student_over_plain"]["median"] > 1.2, "seven passes in place of three"


def test_a_preset_that_samples_as_a_teacher_of_few_steps_has_a_row_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(students, "by_turns", lambda calls, turns: {name: [1.0] for name in calls})
    preset = load_config("smoke", ["sampling.sampler=unipc", "sampling.num_steps=8", "sampling.time_shift=3.0"])
    rows = students.drawing_costs(preset, images=1, turns=1, student_steps=(8, 4))
    assert [(row["weights"], row["sampler"], row["steps"], row["time_shift"]) for row in rows] == [
        ("teacher", "unipc", 8, 3.0),
        *((role, sampler, steps, 1.0) for role, sampler in (("teacher", "unipc"), ("student", "ddpm")) for steps in (8, 4)),
    ]


def test_what_is_compared_takes_turns_and_the_first_round_does_not_count() -> None:
    order: list[str] = []
    taken_s = students.by_turns({name: lambda name=name: order.append(name) for name in ("one", "other")}, 2)
    assert order == ["one", "other"] * 3
    assert {name: len(values) for name, values in taken_s.items()} == {"one": 2, "other": 2}
