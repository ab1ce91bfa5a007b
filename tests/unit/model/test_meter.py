"""Means, rates, hours and money of a training window."""

import pytest
import torch
from celebdit_testing.recipes import tiny_recipe

from model.distributed import World
from model.meter import Hardware, Meter, hardware_of

CPU = torch.device("cpu")


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def meter(clock: Clock, **hardware: object) -> Meter:
    return Meter(World(), Hardware(**{"hours_key": "cost/gpu_hours", **hardware}), batch_images=8, device=CPU, clock=clock)


def steps(target: Meter, *losses: float) -> None:
    for loss in losses:
        target.add_step(torch.tensor(loss), torch.tensor(2 * loss))


def test_a_window_gives_means_rates_and_shares() -> None:
    clock = Clock()
    target = meter(clock, step_flops=3e12, peak_flops=6e12)
    steps(target, 1.0, 2.0, 3.0)
    target.add_wait(1.0)
    clock.now_s += 5.0
    target.exclude(1.0)
    assert target.read() == {
        "train/loss": 2.0,
        "train/grad_norm": 4.0,
        "perf/images_per_s": 8 * 3 / 4,
        "perf/data_wait_share": 0.25,
        "cost/gpu_hours": 5 / 3600,
        "perf/tflops_per_device": pytest.approx(3 * 3 / 4),
        "perf/mfu": pytest.approx(3 / 4 / 2),
    }
    steps(target, 10.0)
    clock.now_s += 2.0
    assert target.read()["train/loss"] == 10.0


def test_hours_add_up_over_attempts_and_cost_what_the_price_says() -> None:
    clock = Clock()
    first = meter(clock, price_per_device_hour=3.0)
    steps(first, 1.0)
    clock.now_s += 3600
    facts, hours = first.facts(), first.device_hours
    second = meter(clock, price_per_device_hour=3.0)
    second.restore(facts, device_hours=hours)
    steps(second, 3.0)
    clock.now_s += 1800
    values = second.read()
    assert values["train/loss"] == 2.0, "the window goes on where it was cut"
    assert values["perf/images_per_s"] == pytest.approx(8 / 1800), "a rate is that of the time since the resume"
    assert values["cost/gpu_hours"] == pytest.approx(1.5)
    assert values["cost/total"] == pytest.approx(4.5)


def test_unknown_hardware_reports_no_utilisation() -> None:
    target = meter(Clock(), step_flops=1e12)
    steps(target, 1.0)
    values = target.read()
    assert "perf/mfu" not in values
    assert "cost/total" not in values


def test_on_a_cpu_no_operations_are_counted() -> None:
    hardware = hardware_of(tiny_recipe(), CPU, price_per_device_hour=None)
    assert hardware == Hardware(hours_key="cost/cpu_rank_hours")
