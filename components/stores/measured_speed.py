"""How fast trainings were that reached their last step: one small object per network, numerics, share of a process and kind of device.

Promises: a newer training replaces what an older one measured; an object that cannot be read is as good as none. What is measured by
nothing here: sampling, evaluation, and how long a process takes to start.
"""

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Literal

from pydantic import Field

from components.errors import CelebditError
from components.manifests import Manifest
from components.resources import ResourcesConfig
from components.storage import ObjectStore
from components.storage.reader import StoreReader
from components.stores.layout import StoreLayout
from model.canonical import digest_of
from model.config import TrainingConfig, TrainingRecipe

_FEWEST_WINDOWS = 2
"""Windows of `log_every_steps` steps after the first, in which kernels are compiled and caches are cold."""


class MeasuredSpeed(Manifest):
    """Speed of a training that reached its last step."""

    kind: Literal["training-speed"] = "training-speed"
    run_key: str
    device: str
    devices: int = Field(gt=0)
    """GPUs, or processes on the CPU."""
    images_per_s: float = Field(gt=0)
    """Of all devices together, without sample grids: the median over the windows between two metric points."""
    windows: int


class SpeedRecorder:
    """Collects the speed of one attempt at a training from its metric points."""

    def __init__(self) -> None:
        self._rates: list[float] = []

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Add a metric point; one without a speed is passed over."""
        rate = values.get("perf/images_per_s")
        if rate is not None:
            self._rates.append(rate)

    def speed(self, run_key: str, *, device: str, devices: int) -> MeasuredSpeed | None:
        """Return the speed, or None if too little was trained to tell."""
        warm = self._rates[1:]
        if len(warm) < _FEWEST_WINDOWS:
            return None
        return MeasuredSpeed(run_key=run_key, device=device, devices=devices, images_per_s=median(warm), windows=len(warm))


def images_per_pass(training: TrainingConfig, resources: ResourcesConfig) -> int:
    """Return the images of one forward pass on one device."""
    per_rank = -(-training.batch_images // resources.num_ranks)
    return min(per_rank, training.microbatch_images or per_rank)


def store_speed(speed: MeasuredSpeed, recipe: TrainingRecipe, resources: ResourcesConfig, store: ObjectStore, layout: StoreLayout) -> None:
    """Store `speed` as the newest of trainings like this one."""
    uri = layout.speed(_digest(recipe, resources, speed.device))
    store.put_bytes(uri, speed.model_dump_json().encode())


def find_speed(
    recipe: TrainingRecipe, resources: ResourcesConfig, device: str, reader: StoreReader, layout: StoreLayout
) -> MeasuredSpeed | None:
    """Return the newest speed of a training like this one on `device`, or None if there is none or the store does not answer."""
    uri = layout.speed(_digest(recipe, resources, device))
    with suppress(CelebditError):
        return MeasuredSpeed.parse(reader.get_bytes(uri), origin=str(uri))
    return None


def cpu_name(read_text: Callable[[], str] = lambda: Path("/proc/cpuinfo").read_text(errors="replace")) -> str:
    """Return the model of this machine's CPU and its number of cores, like "Xeon 8481C, 8 cores"."""
    models: list[str] = []
    with suppress(OSError):
        models = [line.partition(":")[2].strip() for line in read_text().splitlines() if line.startswith("model name")]
    return f"{models[0] if models else os.uname().machine}, {os.cpu_count() or 1} cores"


def _digest(recipe: TrainingRecipe, resources: ResourcesConfig, device: str) -> str:
    """Return the digest of what decides the speed of one device; CPU processes share one machine, so their number does too."""
    training = recipe.training
    numerics = training.model_dump(mode="json", include={"precision", "compile", "activation_checkpointing", "deterministic"})
    averages = len(training.ema_sigma_rel) + (training.ema_decay is not None)
    return digest_of(
        {
            "network": recipe.network.model_dump(mode="json"),
            "training": {**numerics, "images_per_pass": images_per_pass(training, resources), "averages": averages},
            "device": device,
            **({} if recipe.distill is None else {"distilled": True}),
            **({"processes": resources.processes, "threads": resources.threads} if resources.device == "cpu" else {}),
        }
    )
