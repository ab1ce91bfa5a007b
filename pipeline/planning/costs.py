"""What a run would cost: operations, device hours, memory and storage, for the devices of a table."""

from collections.abc import Iterator
from dataclasses import dataclass

from components.manifests import DatasetManifest
from components.stores.measured_speed import images_per_pass
from model.memory_estimate import COMPILED_SHARE, FLOAT_BYTES, TrainingMemory, checkpoint_bytes, training_memory
from pipeline.config import RunConfig
from pipeline.planning.device_costs import DeviceCost, MeasuredSpeeds, costs_on_devices
from pipeline.planning.work import Work, work_of

_LOCAL_CHECKPOINTS = 2
"""Checkpoints on the node's disk at once: one that is being uploaded, and the next."""


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
    teacher_bytes: int
    """The weights that a student learns from, of which each node has a copy."""

    @property
    def store_bytes(self) -> int:
        """What stays in the store of the training, when it has ended."""
        return self.checkpoints_kept * self.checkpoint_bytes + self.snapshots * self.snapshot_bytes

    @property
    def node_bytes(self) -> int:
        """What the training needs on a node's disk."""
        return _LOCAL_CHECKPOINTS * self.checkpoint_bytes + self.snapshot_bytes + (self.pack_bytes or 0) + self.teacher_bytes


@dataclass(frozen=True)
class Costs:
    """All that a run would cost."""

    work: Work
    memory: TrainingMemory
    microbatch_images: int
    devices: tuple[DeviceCost, ...]
    storage: StorageCost


def costs_of(
    config: RunConfig,
    dataset: DatasetManifest | None,
    *,
    done_steps: int = 0,
    is_evaluated: bool = False,
    measured: MeasuredSpeeds = lambda device: None,
) -> Costs:
    """Estimate what is left to do of a run that has `done_steps` steps already; the dataset's size is a bound if it is not known."""
    work = work_of(config, max(0, config.training.total_steps - done_steps), is_evaluated=is_evaluated)
    memory = training_memory(config.network, config.training, distilled=config.distill.teacher is not None)
    images = dataset.num_images if dataset is not None else config.data.min_images
    storage = _storage(config, memory, pack_bytes=3 * config.network.image_px**2 * images)
    resident = (storage.pack_bytes or 0) if config.training.data_on_device else 0
    microbatch = images_per_pass(config.training, config.resources)
    devices = costs_on_devices(config, work, memory, microbatch_images=microbatch, resident_bytes=resident, measured=measured)
    return Costs(work, memory, microbatch, devices, storage)


def _storage(config: RunConfig, memory: TrainingMemory, *, pack_bytes: int) -> StorageCost:
    training, distilled = config.training, config.distill.teacher is not None
    every, milestones = training.ema_snapshot_every_steps, training.checkpoint_keep_every_steps
    widths = len(training.ema_sigma_rel)
    kept = training.checkpoints_to_keep + training.checkpoints_best
    return StorageCost(
        checkpoint_bytes=checkpoint_bytes(config.network, training, distilled=distilled),
        checkpoints_kept=kept + (training.total_steps // milestones if milestones else 0),
        snapshots=-(-training.total_steps // every) if every else 0,
        snapshot_bytes=FLOAT_BYTES * memory.parameters * widths if every else 0,
        pack_bytes=pack_bytes,
        teacher_bytes=FLOAT_BYTES * memory.parameters if distilled else 0,
    )


def unknown_parts(config: RunConfig, dataset: DatasetManifest | None, costs: Costs) -> Iterator[str]:
    """Yield what an estimate does not know."""
    if dataset is None:
        yield f"the number of images; {config.data.min_images} are assumed, the fewest that data.min_images accepts"
    if any(device.is_assumed for device in costs.devices):
        yield "hours: they are assumed from data sheets and the share of the peak rate, where no run was measured"
    if config.training.compile:
        yield f"memory of the compiled network: {COMPILED_SHARE:.0%} of the eager bytes per image are assumed, as measured on celebahq256-b"
    yield "the time that ingest, the features of the references, the start of pods and waiting for nodes take"
