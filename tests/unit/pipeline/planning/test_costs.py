"""What a plan says of operations, memory, hours and storage, against numbers that were measured or counted elsewhere."""

import resource
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from celebdit_testing.waiting import wait_until

from components.errors import TemporaryFailure
from components.stores.measured_speed import MeasuredSpeed, cpu_name
from components.system.process_table import is_alive, kill_all
from model.denoiser import build_denoiser
from model.devices import DEVICES
from model.memory import LiveBytes
from model.memory_estimate import TrainingMemory, training_memory
from model.trainer import Trainer
from pipeline.config import load_config
from pipeline.planning import device_costs, local_speed
from pipeline.planning.costs import costs_of, unknown_parts
from pipeline.planning.local_speed import measure_here
from pipeline.planning.report import Plan
from pipeline.planning.steps import PlannedSteps

CONSENT = {"data.licence_accepted_by": "a test"}
SMALL: dict[str, Any] = {"images_per_rank": 4, "threads": 1, "with_steps": True}


@pytest.fixture(scope="module")
def costs_b():
    return costs_of(load_config("celebahq256-b", changes=CONSENT), None)


def test_the_operations_of_a_preset_are_those_of_its_network_times_its_images(costs_b) -> None:
    work = costs_b.work
    assert work.flops_per_image == pytest.approx(99e9, rel=0.02)
    assert work.training_images == 46_000 * 1024
    assert work.training_flops == pytest.approx(3 * work.flops_per_image * work.training_images, rel=0.01)
    assert (work.calls_per_sample, work.evaluation_images) == (2 * 32 - 1, 50_000)
    assert work.evaluation_flops == work.flops_per_image * 63 * 50_000


def test_hours_are_operations_by_the_assumed_rate_and_devices_share_them() -> None:
    one, eight = (
        costs_of(load_config("celebahq256-b", [f"resources.processes={n}", "resources.price_per_device_hour=2"], changes=CONSENT), None)
        for n in (1, 8)
    )
    h100 = {device.name: device for device in one.devices}["H100"]
    assert h100.basis == "28% of peak assumed"
    assert h100.training_hours == pytest.approx(one.work.training_flops / (0.28 * 989e12) / 3600)
    shared = {device.name: device for device in eight.devices}["H100"]
    assert shared.training_hours == pytest.approx(h100.training_hours / 8)
    assert shared.price == pytest.approx(h100.price)
    assert h100.price == pytest.approx(2 * (h100.training_hours + h100.evaluation_hours))


def test_hours_are_those_of_a_measured_run_where_there_is_one() -> None:
    config = load_config("celebahq256-b", ["resources.processes=4"], changes=CONSENT)
    run = MeasuredSpeed(run_key="0123", device="H100", devices=8, images_per_s=16_000, windows=9)
    costs = costs_of(config, None, measured={"H100": run}.get)
    devices = {device.name: device for device in costs.devices}
    grids = costs.work.training_flops / (3 * costs.work.flops_per_image)
    assert devices["H100"].training_hours == pytest.approx(grids / (4 * 2000) / 3600)
    assert devices["H100"].basis == "measured on run 0123: 2e+03 images/s each of 8"
    assert devices["H200"].basis == "28% of peak assumed"
    assert "where no run was measured" in "\n".join(unknown_parts(config, None, costs))
    all_measured = costs_of(config, None, measured=lambda device: run)
    assert "hours" not in "\n".join(unknown_parts(config, None, all_measured))


def test_a_measured_run_gives_hours_to_a_network_that_is_too_large_to_be_tried_here() -> None:
    config = load_config("celebahq256-b", ["resources.device=cpu"], changes=CONSENT)
    run = MeasuredSpeed(run_key="0123", device=cpu_name(), devices=1, images_per_s=0.1, windows=9)
    (cost,) = costs_of(config, None, measured={cpu_name(): run}.get).devices
    assert cost.training_hours == pytest.approx(46_000 * 1024 / 0.1 / 3600, rel=0.01)
    assert cost.evaluation_hours == pytest.approx(50_000 * 63 / 3 / 0.1 / 3600)


@pytest.mark.parametrize(
    ("has_speed", "is_evaluated", "trained", "is_sampled"), [(False, False, 1, True), (True, False, 0, True), (True, True, 0, False)]
)
def test_only_what_no_run_has_measured_and_what_is_left_is_measured_here(
    has_speed: bool, is_evaluated: bool, trained: int, is_sampled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: Counter[str] = Counter()

    def count(name: str) -> None:
        method = getattr(Trainer, name)

        def counted(*arguments: Any, **named: Any) -> Any:
            calls[name] += 1
            return method(*arguments, **named)

        monkeypatch.setattr(Trainer, name, counted)

    count("run")
    count("draw")
    monkeypatch.setattr(device_costs, "measure_cpu", measure_here)
    config = load_config("smoke")
    run = MeasuredSpeed(run_key="0123", device=cpu_name(), devices=2, images_per_s=1.0, windows=9)
    measured = {cpu_name(): run} if has_speed else {}
    (cost,) = costs_of(config, None, is_evaluated=is_evaluated, measured=measured.get).devices
    assert (calls["run"], calls["draw"] > 0) == (trained, is_sampled)
    assert (cost.evaluation_hours > 0) is not is_evaluated
    assert cost.training_hours > 0


def test_this_machine_is_measured_by_a_process_that_keeps_memory_as_a_rank_does_and_gets_no_secret(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    code = (
        "import json, os; request = json.load(__import__('sys').stdin); has_heap = 'hugetlb=1' in os.environ['GLIBC_TUNABLES'];"
        "print(json.dumps({'step_s': float(has_heap), 'call_s': float('AWS_SECRET_ACCESS_KEY' in os.environ)}))"
    )
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.setattr(local_speed, "python_command", lambda module: [sys.executable, "-c", code])
    measured = local_speed.measure_cpu(load_config("smoke").recipe, images_per_rank=4, threads=1, with_steps=True)
    assert measured == local_speed.LocalSpeed(step_s=1.0, call_s=0.0)


def test_a_measurement_that_fails_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_speed, "python_command", lambda module: [sys.executable, "-c", "raise MemoryError('no room')"])
    with pytest.raises(RuntimeError, match=r"exit code 1\n(.*\n)*MemoryError: no room"):
        local_speed.measure_cpu(load_config("smoke").recipe, images_per_rank=4, threads=1, with_steps=True)


def test_what_a_library_prints_does_not_reach_the_answer_of_a_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    """As MKL does with MKL_VERBOSE=1: it writes to the descriptor, past Python's own stream."""
    code = (
        "import os; from pipeline.planning import local_speed;"
        "local_speed.measure_here = lambda recipe, **_: os.write(1, b'MKL_VERBOSE ') and local_speed.LocalSpeed(step_s=1.0, call_s=2.0);"
        "local_speed.main(); os.write(1, b'SGEMM')"
    )
    monkeypatch.setattr(local_speed, "python_command", lambda module: [sys.executable, "-c", code])
    assert local_speed.measure_cpu(load_config("smoke").recipe, **SMALL) == local_speed.LocalSpeed(step_s=1.0, call_s=2.0)


def test_a_measurement_whose_files_do_not_fit_fails_as_other_commands_do() -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**10, before[1]))  # a lock fits, and no images
    try:
        with pytest.raises(TemporaryFailure, match="File too large"):
            local_speed.measure_cpu(load_config("smoke").recipe, **SMALL)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_measurement_that_the_system_kills_is_no_internal_error_and_leaves_no_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    note = tmp_path / "folder"
    code = f"import os, pathlib; pathlib.Path('left').touch(); pathlib.Path({str(note)!r}).write_text(os.getcwd()); os.kill(os.getpid(), 9)"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(local_speed, "python_command", lambda module: [sys.executable, "-c", code])
    with pytest.raises(TemporaryFailure, match="SIGKILL") as failed:
        local_speed.measure_cpu(load_config("smoke").recipe, **SMALL)
    assert "memory" in str(failed.value.hint)
    assert list(tmp_path.iterdir()) == [note]
    assert not Path(note.read_text()).exists()


def test_a_measurement_ends_with_the_command_that_is_killed(tmp_path: Path) -> None:
    """Of which a parent that is killed cannot take care itself."""
    child = f"import os, pathlib, time; pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(os.getpid())); time.sleep(60)"
    parent = (
        "import sys; from pipeline.config import load_config; from pipeline.planning import local_speed;"
        f"local_speed.python_command = lambda module: [sys.executable, '-c', {child!r}];"
        f"local_speed.measure_cpu(load_config('smoke').recipe, **{SMALL!r})"
    )
    process = subprocess.Popen([sys.executable, "-c", parent])
    try:
        wait_until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text() != "", timeout_s=60)
        measurement = psutil.Process(int((tmp_path / "pid").read_text()))
    finally:
        process.kill()
        process.wait()
    try:
        wait_until(lambda: not is_alive(measurement), timeout_s=5)
    finally:
        kill_all([measurement])


def test_without_a_price_none_is_made_up(costs_b) -> None:
    assert {device.price for device in costs_b.devices} == {None}


@pytest.mark.parametrize(("preset", "image_mb"), [("celebahq256-s", 212), ("celebahq256-b", 476), ("celebahq256-l", 888)])
def test_bytes_of_an_image_in_bfloat16_are_those_measured_with_real_norms(preset: str, image_mb: float) -> None:
    """The figures were counted on the whole network with the norm policy of CUDA."""
    config = load_config(preset, ["training.compile=false"], changes=CONSENT)
    assert training_memory(config.network, config.training).image_bytes / 1e6 == pytest.approx(image_mb, rel=0.04)


@pytest.mark.parametrize("images", [3, 8])
def test_memory_of_any_depth_and_batch_is_that_of_a_real_pass(images: int) -> None:
    config = load_config("smoke", ["network.depth=5"])
    network = build_denoiser(config.network).train()
    with LiveBytes() as live:
        loss = network(torch.randn(images, 3, config.network.image_px, config.network.image_px), torch.rand(images)).square().mean()
        alive = live.live
    loss.backward()
    estimated = training_memory(config.network, config.training)
    assert estimated.pass_bytes + images * estimated.image_bytes == pytest.approx(alive, rel=0.02)
    assert estimated.parameters == sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize("device_bytes", [1000, 760])
def test_the_largest_microbatch_fits_and_twice_as_much_does_not(device_bytes: int) -> None:
    memory = TrainingMemory(parameters=10, states_bytes=100, pass_bytes=20, image_bytes=7)
    largest = memory.largest_microbatch(device_bytes, resident_bytes=200)
    assert memory.bytes_of(largest, resident_bytes=200) <= device_bytes < memory.bytes_of(2 * largest, resident_bytes=200)
    assert memory.bytes_of(largest, resident_bytes=200) == 100 + 20 + 7 * largest + 200
    assert memory.largest_microbatch(120) == 0, "not one"
    assert memory.largest_microbatch(127) == 1


def test_a_dataset_on_the_device_takes_its_bytes_there_and_leaves_less_for_images() -> None:
    on_device, on_disk = (
        costs_of(load_config("smoke", ["resources.device=cuda", f"training.data_on_device={on}", "data.min_images=20_000_000"]), None)
        for on in ("true", "false")
    )
    dataset_gb = 3 * 32**2 * 20e6 / 1e9
    for with_data, without in zip(on_device.devices, on_disk.devices, strict=True):
        assert with_data.needed_gb - without.needed_gb == pytest.approx(dataset_gb)
        assert with_data.largest_microbatch < without.largest_microbatch or with_data.memory_gb > 2 * dataset_gb


def test_a_microbatch_is_no_larger_than_the_share_of_a_process() -> None:
    config = load_config("celebahq256-b", ["resources.processes=64"], changes=CONSENT)
    assert costs_of(config, None).microbatch_images == 1024 // 64


def test_a_device_that_is_too_small_is_said(costs_b) -> None:
    by_name = {device.name: device for device in costs_b.devices}
    assert by_name["H100"].fits
    assert not by_name["L4"].fits or by_name["L4"].largest_microbatch >= costs_b.microbatch_images
    assert {"H100", "H100 PCIe", "H100 NVL", "H200", "A100", "L40S", "L4", "B200", "RTX 4090", "RTX 5090"} <= set(by_name)
    assert len(by_name) < len(DEVICES)


def test_storage_counts_checkpoints_milestones_and_snapshots(costs_b) -> None:
    storage, parameters = costs_b.storage, costs_b.memory.parameters
    assert storage.checkpoint_bytes == 4 * parameters * (3 + 3), "weights, two moments, three averages"
    assert (storage.checkpoints_kept, storage.snapshots, storage.snapshot_bytes) == (3 + 1, 46_000 // 2000, 4 * parameters * 2)
    assert storage.store_bytes == 4 * storage.checkpoint_bytes + 23 * storage.snapshot_bytes
    assert storage.pack_bytes == 30_000 * 256 * 256 * 3
    kept = costs_of(load_config("celebahq256-b", ["training.checkpoint_keep_every_steps=10000"], changes=CONSENT), None).storage
    assert kept.checkpoints_kept == storage.checkpoints_kept + 4


def test_what_is_done_costs_nothing() -> None:
    config = load_config("celebahq256-b", changes=CONSENT)
    done = costs_of(config, None, done_steps=46_000, is_evaluated=True)
    assert (done.work.training_flops, done.work.evaluation_flops) == (0, 0)
    half = costs_of(config, None, done_steps=23_000)
    assert half.work.training_images == 23_000 * 1024


def test_scores_during_training_cost_the_samples_of_the_milestones_that_are_left() -> None:
    scored = ["training.score_every_steps=3000", "training.score_images=4000"]
    config, plain = (load_config("celebahq256-b", overrides, changes=CONSENT) for overrides in (scored, []))
    costs, without = costs_of(config, None), costs_of(plain, None)
    assert (without.work.scored_images, without.work.score_flops) == (0, 0)
    assert costs.work.scored_images == 15 * 4000
    assert costs.work.score_flops == costs.work.flops_per_image * 63 * 15 * 4000
    assert costs.work.training_flops == without.work.training_flops
    assert costs.work.flops == without.work.flops + costs.work.score_flops
    hours, before = ({device.name: device for device in each.devices}["H100"].training_hours for each in (costs, without))
    assert hours - before == pytest.approx(costs.work.score_flops / (0.28 * 0.28 * 989e12) / 3600), "that network is not compiled"
    assert costs_of(config, None, done_steps=44_000).work.scored_images == 4000
    assert costs_of(config, None, done_steps=46_000).work.scored_images == 0


@pytest.mark.parametrize(
    ("every", "line"), [(46_001, "none: training.score_every_steps 46001 is beyond training.total_steps 46000"), (46_000, "1 score of")]
)
def test_a_plan_notes_scores_that_never_come(every: int, line: str) -> None:
    config = load_config("celebahq256-b", [f"training.score_every_steps={every}"], changes=CONSENT)
    plan = Plan("test", config, PlannedSteps(()), costs_of(config, None), (), "celebdit run")
    (scores,) = [text.strip() for text in plan.lines() if text.startswith("  scores ")]
    assert scores.removeprefix("scores").strip().startswith(line)


@pytest.mark.parametrize(
    ("precision", "compiled", "share"), [("bfloat16", True, 0.28), ("bfloat16", False, 1), ("float32", True, 1), ("float32", False, 1)]
)
def test_scores_are_slower_than_training_only_where_that_is_compiled_in_bfloat16(precision: str, compiled: bool, share: float) -> None:
    settings = [f"training.precision={precision}", f"training.compile={str(compiled).lower()}"]
    costs, without = (
        costs_of(load_config("celebahq256-b", [*settings, *scored], changes=CONSENT), None)
        for scored in (["training.score_every_steps=3000"], [])
    )
    hours, before = ({device.name: device for device in each.devices}["H100"].training_hours for each in (costs, without))
    assert (hours - before) / before == pytest.approx(costs.work.score_flops / share / costs.work.training_flops)


def test_scores_take_time_on_this_cpu() -> None:
    few, many = (
        load_config("smoke", ["training.score_every_steps=6", f"training.score_images={count}", "sampling.num_steps=50"])
        for count in (2, 2000)
    )
    run = MeasuredSpeed(run_key="0123", device=cpu_name(), devices=2, images_per_s=100.0, windows=9)
    for measured in (lambda device: None, lambda device: run):
        (cost,), (more,) = (costs_of(config, None, measured=measured).devices for config in (few, many))
        assert more.training_hours > 2 * cost.training_hours


def test_what_is_not_known_is_said_and_only_that() -> None:
    config = load_config("celebahq256-b", changes=CONSENT)
    lines = "\n".join(unknown_parts(config, None, costs_of(config, None)))
    assert "30000 are assumed" in lines
    assert "hours: they are assumed" in lines
    assert "48% of the eager bytes" in lines
    smoke = load_config("smoke")
    assert "hours" not in "\n".join(unknown_parts(smoke, None, costs_of(smoke, None)))


def test_a_network_too_large_for_this_cpu_has_no_time() -> None:
    config = load_config("celebahq256-b", ["resources.device=cpu"], changes=CONSENT)
    assert costs_of(config, None).devices == ()


def test_the_speed_of_this_cpu_is_measured_and_shared_by_its_cores() -> None:
    config = load_config("smoke")
    (cost,) = costs_of(config, None).devices
    assert cost.basis == "measured here"
    assert 0 < cost.training_hours < 1
    longer = config.model_copy(update={"training": config.training.model_copy(update={"total_steps": 50 * config.training.total_steps})})
    (more,) = costs_of(longer, None).devices
    assert more.training_hours > 10 * cost.training_hours
    assert replace(cost, name="") != replace(more, name="")


def test_a_distillation_costs_seven_passes_an_image_and_has_three_networks() -> None:
    student = ["distill.teacher=53e830b04a95c9d2", "sampling.sampler=ddpm", "sampling.num_steps=4"]
    plain = costs_of(load_config("smoke", student[1:]), None)
    costs = costs_of(load_config("smoke", student), None)
    steps = [cost.work.passes_per_image * cost.work.flops_per_image * cost.work.training_images for cost in (plain, costs)]
    assert steps[1] == pytest.approx(7 / 3 * steps[0])
    assert costs.work.training_flops - steps[1] == pytest.approx(plain.work.training_flops - steps[0]), "sample grids cost the same"
    parameters = costs.memory.parameters
    assert costs.memory.states_bytes - plain.memory.states_bytes == 4 * parameters * 5, (
        "a second network with its gradient and moments, a third"
    )
    assert costs.memory.image_bytes == pytest.approx(2 * plain.memory.image_bytes, abs=1)
    assert costs.storage.checkpoint_bytes - plain.storage.checkpoint_bytes == 4 * parameters * 3
    on_disk = costs.storage.node_bytes - plain.storage.node_bytes
    assert on_disk == 2 * 4 * parameters * 3 + 4 * parameters, "two larger checkpoints, and the weights of the teacher"
    (cpu,) = costs.devices
    assert cpu.basis == "measured here"
    (line,) = (line for line in Plan("smoke", load_config("smoke", student), PlannedSteps(()), costs, (), "").lines() if "distils" in line)
    assert "distils 53e830b04a95c9d2 into 4 steps" in line
