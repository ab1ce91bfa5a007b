"""Hours and memory of a run on devices of one kind.

A device hour is assumed from the operations and a share of the peak rate (MFU), unless an earlier run or a few steps here measured it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import psutil

from components.stores.measured_speed import MeasuredSpeed, cpu_name
from model.devices import DEVICES, DeviceSpec
from model.memory_estimate import CONTEXT_BYTES, TrainingMemory
from pipeline.config import RunConfig
from pipeline.planning.local_speed import measure_cpu, processes_at_once
from pipeline.planning.work import Work

MeasuredSpeeds = Callable[[str], MeasuredSpeed | None]
"""Returns the speed of an earlier run like this one on the device with this name."""
_MFU_BY_PARAMETERS = ((100e6, 0.21), (300e6, 0.28), (float("inf"), 0.32))
"""Assumed shares of the peak rate, compiled in bfloat16, by the bound of the number of parameters: small networks move more bytes per
operation. An H100 reached 0.278 with `celebahq256-b`, see docs/performance.md; the others are scaled from it."""
_EAGER_SHARE = 0.28
"""Of that rate without compilation: sampling with the same network there reached 0.079 of the peak rate."""
_FLOAT32_MFU = 0.5
_OLDER = ("V100", "T4", "A10G")
"""GPUs that people have, but do not rent for this: they have no bfloat16, or little memory."""
PROCESS_BYTES = int(0.85e9)
"""What a rank on a CPU takes besides its tensors: Python, torch and the clients of the servers."""


@dataclass(frozen=True)
class DeviceCost:
    """A run on devices of one kind."""

    name: str
    devices: int
    basis: str
    """Where the hours are from: a run that was measured, "measured here", or the assumed share of the peak rate."""
    training_hours: float
    """On the clock, all devices at work."""
    evaluation_hours: float
    memory_gb: float
    needed_gb: float
    """For the microbatch of the configuration."""
    largest_microbatch: int
    """Images per pass, 0 if not one fits."""
    price: float | None
    is_assumed: bool = False
    """Whether nothing was measured on such a device."""

    @property
    def fits(self) -> bool:
        return self.needed_gb <= self.memory_gb


def costs_on_devices(
    config: RunConfig, work: Work, memory: TrainingMemory, *, microbatch_images: int, resident_bytes: int, measured: MeasuredSpeeds
) -> tuple[DeviceCost, ...]:
    """Return the cost on this machine's CPU if the run is for CPUs, else on each GPU of the table."""
    if config.resources.device == "cpu":
        return _on_this_cpu(config, work, memory, microbatch_images, measured(cpu_name()))
    shown = (device for device in DEVICES if device.name not in _OLDER)
    return tuple(_on_device(device, config, work, memory, microbatch_images, resident_bytes, measured(device.name)) for device in shown)


def _on_device(
    device: DeviceSpec,
    config: RunConfig,
    work: Work,
    memory: TrainingMemory,
    microbatch_images: int,
    resident_bytes: int,
    measured: MeasuredSpeed | None,
) -> DeviceCost:
    count, price = config.resources.num_ranks, config.resources.price_per_device_hour
    mfu = assumed_mfu(config, memory.parameters)
    rate = count * mfu * device.peak_flops(bfloat16=config.training.precision == "bfloat16")
    basis = f"{mfu:.0%} of peak assumed"
    if measured is not None:
        rate = count * _flops_per_device(measured, work)
        basis = _measured_on(measured)
    scores = work.score_flops / _score_share(config)
    hours = (work.training_flops + scores) / rate / 3600
    measuring = work.evaluation_flops / rate / 3600
    return DeviceCost(
        name=device.name,
        devices=count,
        basis=basis,
        training_hours=hours,
        evaluation_hours=measuring,
        memory_gb=device.memory_gb,
        needed_gb=(memory.bytes_of(microbatch_images, resident_bytes=resident_bytes) + CONTEXT_BYTES) / 1e9,
        largest_microbatch=memory.largest_microbatch(device.memory_gb * 1e9 - CONTEXT_BYTES, resident_bytes=resident_bytes),
        price=None if price is None else price * count * (hours + measuring),
        is_assumed=measured is None,
    )


def _score_share(config: RunConfig) -> float:
    """Return the share of the training's rate at which scores are drawn: their network is not compiled."""
    # The rate that is assumed in float32 is the same with and without compilation.
    return _EAGER_SHARE if config.training.compile and config.training.precision == "bfloat16" else 1.0


def _flops_per_device(measured: MeasuredSpeed, work: Work) -> float:
    """Return the operations per second of one device of a run that was measured."""
    return measured.images_per_s / measured.devices * work.passes_per_image * work.flops_per_image


def _measured_on(measured: MeasuredSpeed) -> str:
    share = "" if measured.devices == 1 else f" of {measured.devices}"
    return f"measured on run {measured.run_key}: {measured.images_per_s / measured.devices:.3g} images/s each{share}"


def _on_this_cpu(
    config: RunConfig, work: Work, memory: TrainingMemory, microbatch_images: int, measured: MeasuredSpeed | None
) -> tuple[DeviceCost, ...]:
    """Return the cost on this machine's CPU: measured, now or by a run, or nothing if the network is too large to be tried and was not."""
    resources = config.resources
    per_rank = -(-config.training.batch_images // resources.num_ranks)
    speed = None
    if work.evaluation_flops or measured is None:
        speed = measure_cpu(config.recipe, images_per_rank=per_rank, threads=resources.threads, with_steps=measured is None)
        if measured is None and speed is None:
            return ()
    processes = resources.processes
    at_once = processes_at_once(processes, resources.threads)
    if measured is not None:
        rate = processes * _flops_per_device(measured, work)
        training_h, evaluation_h = (work.training_flops + work.score_flops) / rate / 3600, work.evaluation_flops / rate / 3600
    if speed is not None:
        call_h = speed.call_s / at_once / 3600
        evaluation_h = call_h * work.evaluation_flops / work.flops_per_image
        if speed.step_s is not None:
            steps = work.training_images / config.training.batch_images
            of_steps = work.passes_per_image * work.flops_per_image * work.training_images
            sampling_flops = work.training_flops + work.score_flops - of_steps
            grids_h = call_h * sampling_flops / work.flops_per_image
            training_h = steps * speed.step_s * processes / at_once / 3600 + grids_h
    price = resources.price_per_device_hour
    return (
        DeviceCost(
            name="CPU process" if processes == 1 else "CPU processes",
            devices=processes,
            basis="measured here" if measured is None else _measured_on(measured),
            training_hours=training_h,
            evaluation_hours=evaluation_h,
            memory_gb=psutil.virtual_memory().total / 1e9,
            needed_gb=processes * (memory.bytes_of(microbatch_images) + PROCESS_BYTES) / 1e9,
            largest_microbatch=memory.largest_microbatch(psutil.virtual_memory().total / processes - PROCESS_BYTES),
            price=None if price is None else price * processes * (training_h + evaluation_h),
        ),
    )


def assumed_mfu(config: RunConfig, parameters: int) -> float:
    """Return the share of a device's peak rate that is assumed where nothing was measured."""
    if config.training.precision == "float32":
        return _FLOAT32_MFU
    mfu = next(share for bound, share in _MFU_BY_PARAMETERS if parameters < bound)
    return mfu if config.training.compile else mfu * _EAGER_SHARE
