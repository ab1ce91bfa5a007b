"""What a run would cost: operations, device hours, memory and storage, for the devices of a table.

A device hour is assumed from the operations and a share of the peak rate (MFU) unless it was measured. Operations are those of matrix
products, convolutions and attention, as `model/flops.py` counts them.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import psutil

from components.evaluate.protocol import comparison_of
from components.manifests import DatasetManifest
from model.devices import DEVICES, DeviceSpec
from model.flops import forward_flops
from model.memory_estimate import CONTEXT_BYTES, FLOAT_BYTES, TrainingMemory, training_memory
from model.sampler_table import SAMPLERS
from model.trainer import NUM_SAMPLES
from pipeline.config import RunConfig
from pipeline.planning.local_speed import measure_cpu, processes_at_once

_MFU_BY_PARAMETERS = ((100e6, 0.30), (300e6, 0.40), (float("inf"), 0.45))
"""Assumed shares of the peak rate, compiled in bfloat16: small networks move more bytes per operation."""
_EAGER_SHARE = 0.5
_OLDER = ("V100", "T4", "A10G")
"""GPUs that people have, but do not rent for this: they have no bfloat16, or little memory."""
PROCESS_BYTES = int(0.6e9)
"""What a rank on a CPU takes besides its tensors: Python, torch and the clients of the servers."""
_FLOAT32_MFU = 0.5
_BACKWARD = 3
"""Operations of a forward and a backward pass, in forward passes."""
_LOCAL_CHECKPOINTS = 2
"""Checkpoints on the node's disk at once: one that is being uploaded, and the next."""


@dataclass(frozen=True)
class Work:
    """Floating-point operations of a run, all devices together."""

    flops_per_image: float
    """Of one forward pass."""
    training_images: int
    training_flops: float
    calls_per_sample: int
    evaluation_images: int
    evaluation_flops: float

    @property
    def flops(self) -> float:
        return self.training_flops + self.evaluation_flops


@dataclass(frozen=True)
class DeviceCost:
    """A run on devices of one kind."""

    name: str
    devices: int
    basis: str
    """Where the hours are from: "measured here", or the assumed share of the peak rate."""
    training_hours: float
    """On the clock, all devices at work."""
    evaluation_hours: float
    memory_gb: float
    needed_gb: float
    """For the microbatch of the configuration."""
    largest_microbatch: int
    """Images per pass, 0 if not one fits."""
    price: float | None

    @property
    def fits(self) -> bool:
        return self.needed_gb <= self.memory_gb


@dataclass(frozen=True)
class StorageCost:
    """Bytes that a run writes."""

    checkpoint_bytes: int
    checkpoints_kept: int
    snapshots: int
    snapshot_bytes: int
    """Of one snapshot of the averages."""
    pack_bytes: int | None
    """The dataset on a node's disk, None if its size is not known."""

    @property
    def store_bytes(self) -> int:
        """What stays in the store of the training, when it has ended."""
        return self.checkpoints_kept * self.checkpoint_bytes + self.snapshots * self.snapshot_bytes

    @property
    def node_bytes(self) -> int:
        """What the training needs on a node's disk."""
        return _LOCAL_CHECKPOINTS * self.checkpoint_bytes + self.snapshot_bytes + (self.pack_bytes or 0)


@dataclass(frozen=True)
class Costs:
    """All that a run would cost."""

    work: Work
    memory: TrainingMemory
    microbatch_images: int
    devices: tuple[DeviceCost, ...]
    storage: StorageCost


def costs_of(config: RunConfig, dataset: DatasetManifest | None, *, done_steps: int = 0, is_evaluated: bool = False) -> Costs:
    """Estimate what is left to do of a run that has `done_steps` steps already; the dataset's size is a bound if it is not known."""
    work = _work(config, max(0, config.training.total_steps - done_steps), is_evaluated=is_evaluated)
    memory = training_memory(config.network, config.training)
    images = dataset.num_images if dataset is not None else config.data.min_images
    storage = _storage(config, memory, pack_bytes=3 * config.network.image_px**2 * images)
    resident = (storage.pack_bytes or 0) if config.training.data_on_device else 0
    microbatch = _microbatch(config)
    if config.resources.device == "cpu":
        devices = _on_this_cpu(config, work, memory, microbatch)
    else:
        devices = tuple(_on_device(device, config, work, memory, microbatch, resident) for device in DEVICES if device.name not in _OLDER)
    return Costs(work, memory, microbatch, devices, storage)


def _work(config: RunConfig, steps: int, *, is_evaluated: bool) -> Work:
    per_image, calls = forward_flops(config.network), SAMPLERS[config.sampling.sampler].calls(config.sampling.num_steps)
    images = steps * config.training.batch_images
    grids = steps // config.training.sample_every_steps + (1 if steps else 0)
    samples = 0 if is_evaluated else comparison_of(config.evaluation).num_images
    return Work(
        flops_per_image=per_image,
        training_images=images,
        training_flops=per_image * (_BACKWARD * images + NUM_SAMPLES * calls * grids),
        calls_per_sample=calls,
        evaluation_images=samples,
        evaluation_flops=per_image * calls * samples,
    )


def _microbatch(config: RunConfig) -> int:
    """Return the images of one forward pass on one device."""
    per_rank = -(-config.training.batch_images // config.resources.num_ranks)
    return min(per_rank, config.training.microbatch_images or per_rank)


def _on_device(
    device: DeviceSpec, config: RunConfig, work: Work, memory: TrainingMemory, microbatch_images: int, resident_bytes: int
) -> DeviceCost:
    count, price = config.resources.num_ranks, config.resources.price_per_device_hour
    mfu = assumed_mfu(config, memory.parameters)
    rate = count * mfu * device.peak_flops(bfloat16=config.training.precision == "bfloat16")
    hours = work.training_flops / rate / 3600
    measuring = work.evaluation_flops / rate / 3600
    return DeviceCost(
        name=device.name,
        devices=count,
        basis=f"{mfu:.0%} of peak assumed",
        training_hours=hours,
        evaluation_hours=measuring,
        memory_gb=device.memory_gb,
        needed_gb=(memory.bytes_of(microbatch_images, resident_bytes=resident_bytes) + CONTEXT_BYTES) / 1e9,
        largest_microbatch=memory.largest_microbatch(device.memory_gb * 1e9 - CONTEXT_BYTES, resident_bytes=resident_bytes),
        price=None if price is None else price * count * (hours + measuring),
    )


def _on_this_cpu(config: RunConfig, work: Work, memory: TrainingMemory, microbatch_images: int) -> tuple[DeviceCost, ...]:
    """Return the cost on this machine's CPU, measured, or nothing if the network is too large to be tried."""
    resources = config.resources
    per_rank = -(-config.training.batch_images // resources.num_ranks)
    speed = measure_cpu(config.recipe, images_per_rank=per_rank, threads=resources.threads)
    if speed is None:
        return ()
    at_once = processes_at_once(resources.processes, resources.threads)
    steps = work.training_images / config.training.batch_images
    calls = work.evaluation_flops / work.flops_per_image
    training_h = steps * speed.step_s * resources.processes / at_once / 3600
    evaluation_h = calls * speed.call_s / at_once / 3600
    price = resources.price_per_device_hour
    return (
        DeviceCost(
            name="CPU process" if resources.processes == 1 else "CPU processes",
            devices=resources.processes,
            basis="measured here",
            training_hours=training_h,
            evaluation_hours=evaluation_h,
            memory_gb=psutil.virtual_memory().total / 1e9,
            needed_gb=resources.processes * (memory.bytes_of(microbatch_images) + PROCESS_BYTES) / 1e9,
            largest_microbatch=memory.largest_microbatch(psutil.virtual_memory().total / resources.processes - PROCESS_BYTES),
            price=None if price is None else price * resources.processes * (training_h + evaluation_h),
        ),
    )


def assumed_mfu(config: RunConfig, parameters: int) -> float:
    """Return the share of a device's peak rate that is assumed where nothing was measured."""
    if config.training.precision == "float32":
        return _FLOAT32_MFU
    mfu = next(share for bound, share in _MFU_BY_PARAMETERS if parameters < bound)
    return mfu if config.training.compile else mfu * _EAGER_SHARE


def _storage(config: RunConfig, memory: TrainingMemory, *, pack_bytes: int) -> StorageCost:
    training = config.training
    every, milestones = training.ema_snapshot_every_steps, training.checkpoint_keep_every_steps
    widths = len(training.ema_sigma_rel)
    kept = training.checkpoints_to_keep + training.checkpoints_best
    return StorageCost(
        checkpoint_bytes=memory.states_bytes - FLOAT_BYTES * memory.parameters,  # all states but the gradients
        checkpoints_kept=kept + (training.total_steps // milestones if milestones else 0),
        snapshots=-(-training.total_steps // every) if every else 0,
        snapshot_bytes=FLOAT_BYTES * memory.parameters * widths if every else 0,
        pack_bytes=pack_bytes,
    )


def unknown_parts(config: RunConfig, dataset: DatasetManifest | None) -> Iterator[str]:
    """Yield what an estimate does not know."""
    if dataset is None:
        yield f"the number of images; {config.data.min_images} are assumed, the fewest that data.min_images accepts"
    if config.resources.device != "cpu":
        yield "hours: they are assumed from data sheets and the share of the peak rate shown; nothing was measured on these devices"
    if config.training.compile:
        yield "memory of the compiled network: 45 % of the eager bytes per image are assumed, as measured on celebahq256-b"
    yield "the time that ingest, the features of the references, the start of pods and waiting for nodes take"
