"""A plan as people read it, and as JSON."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from components.reports.plural import plural
from pipeline.config import RunConfig
from pipeline.planning.costs import Costs
from pipeline.planning.device_costs import DeviceCost
from pipeline.planning.steps import PlannedSteps

_NAME_WIDTH = 10


@dataclass(frozen=True)
class Plan:
    """What a run would do and cost."""

    title: str
    config: RunConfig
    planned: PlannedSteps
    costs: Costs
    unknown: tuple[str, ...]
    command: str
    """The command that starts it."""

    def json(self) -> dict[str, Any]:
        """Return the plan as one JSON object."""
        return {
            "config_digest": self.config.digest(),
            "run_key": self.planned.run_key,
            "steps": [asdict(step) for step in self.planned.steps],
            "work": asdict(self.costs.work),
            "memory": asdict(self.costs.memory),
            "microbatch_images": self.costs.microbatch_images,
            "devices": [{**asdict(device), "fits": device.fits} for device in self.costs.devices],
            "storage": {
                **asdict(self.costs.storage),
                "store_bytes": self.costs.storage.store_bytes,
                "node_bytes": self.costs.storage.node_bytes,
            },
            "unknown": list(self.unknown),
            "command": self.command,
        }

    def lines(self) -> Iterator[str]:
        """Yield the plan line by line."""
        yield self.summary()
        yield ""
        for step in self.planned.steps:
            yield f"  {step.name:<{_NAME_WIDTH}} {step.action:<9} {step.reason}"
        yield ""
        yield from self._work()
        yield ""
        yield from self._devices()
        yield ""
        yield from self._storage()
        yield ""
        yield from (f"  not known  {line}" for line in self.unknown)
        yield f"  start      {self.command}"

    def short_lines(self, device: DeviceCost) -> list[str]:
        """Return the plan in three lines: what is done, what it takes on `device`, and what it stores."""
        price = "" if device.price is None else f", {device.price:.2f} in all"
        hours = f"{duration(device.training_hours)} to train, {duration(device.evaluation_hours)} to evaluate"
        stored = size(self.costs.storage.store_bytes)
        return [self.summary(), f"  on {device.devices} x {device.name}: {hours} ({device.basis}){price}", f"  stores {stored}"]

    def summary(self) -> str:
        """Return what will be done in one line."""
        actions = [step.action for step in self.planned.steps]
        counts = ", ".join(f"{actions.count(action)} to {verb}" for action, verb in _VERBS if action in actions)
        return f"plan of {self.title}, configuration {self.config.digest()[:12]}: {counts}"

    def _work(self) -> Iterator[str]:
        work, memory = self.costs.work, self.costs.memory
        yield f"  network    {memory.parameters / 1e6:.1f} M parameters, {work.flops_per_image / 1e9:.3g} GFLOP per image and forward pass"
        yield (
            f"  training   {work.training_images / 1e6:.3g} M images: {work.training_flops:.2g} FLOP{self._distillation_text()}"
            if work.training_images
            else "  training   is finished"
        )
        if work.scored_images:
            scores = plural(work.scored_images // self.config.training.score_images, "score")
            yield f"  scores     {scores} of {self.config.training.score_images} images during training: {work.score_flops:.2g} FLOP"
        if (reason := self.config.training.why_never_scored()) is not None:
            yield f"  scores     none: {reason}"
        yield (
            f"  evaluation {work.evaluation_images} images of {work.calls_per_sample} network calls: {work.evaluation_flops:.2g} FLOP"
            if work.evaluation_images
            else "  evaluation is finished"
        )

    def _distillation_text(self) -> str:
        distill = self.config.distill
        if distill.teacher is None:
            return ""
        trained = "trains the student and a second network beside the teacher, which stays as it is"
        return f"; distils {distill.teacher} into {plural(distill.steps, 'step')}: {trained}"

    def _devices(self) -> Iterator[str]:
        if not self.costs.devices:
            yield "  devices    the network is too large to be tried on this CPU; the time is not known"
            return
        priced = any(device.price is not None for device in self.costs.devices)
        price = f"{'price':>10}  " if priced else ""
        yield f"  {'device':<15} {'train':>9} {'evaluate':>9} {'memory':>15}  {'images per pass':<18}{price}hours from"
        for device in self.costs.devices:
            yield self._device(device, priced=priced)

    def _device(self, device: DeviceCost, *, priced: bool) -> str:
        name = f"{device.devices} {device.name}" if device.devices > 1 else device.name
        memory = f"{device.needed_gb:.3g} of {device.memory_gb:.0f} GB"
        largest = f"{self.costs.microbatch_images}, at most {device.largest_microbatch}" if device.fits else self._too_large(device)
        price = f"{device.price:>10.2f}  " if priced and device.price is not None else ""
        return (
            f"  {name:<15} {duration(device.training_hours):>9} {duration(device.evaluation_hours):>9} {memory:>15}  {largest:<18}"
            f"{price}{device.basis}"
        )

    def _too_large(self, device: DeviceCost) -> str:
        return f"at most {device.largest_microbatch}" if device.largest_microbatch else "does not fit"

    def _storage(self) -> Iterator[str]:
        storage = self.costs.storage
        every = self.config.training.checkpoint_every_s
        yield (
            f"  checkpoint {size(storage.checkpoint_bytes)} every {every:g} s "
            f"({size(storage.checkpoint_bytes / every)}/s on average); {storage.checkpoints_kept} are kept"
        )
        if storage.snapshots:
            yield f"  snapshots  {storage.snapshots} of {size(storage.snapshot_bytes)} for averages of other widths"
        yield f"  storage    {size(storage.store_bytes)} of the training stay in the store; {size(storage.node_bytes)} on the node's disk"


_VERBS = (("reuse", "reuse"), ("continue", "continue"), ("run", "run"), ("unknown", "decide later"))


def duration(hours: float) -> str:
    """Return hours as a person says them."""
    if hours >= 1:
        return f"{hours:.3g} h"
    return f"{hours * 60:.2g} min" if hours * 60 >= 1 else f"{hours * 3600:.2g} s"


def size(num_bytes: float) -> str:
    """Return bytes as a person says them."""
    for bound, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if num_bytes >= bound:
            return f"{num_bytes / bound:.3g} {unit}"
    return f"{num_bytes / 1e3:.3g} kB"
