"""Store how fast a finished training was, for the plans of later ones."""

import torch

from components.errors import CelebditError
from components.runtime.context import StepContext
from components.stores.measured_speed import SpeedRecorder, cpu_name, store_speed
from components.train.spec import TrainSpec
from model.devices import device_named


def report_speed(recorder: SpeedRecorder, spec: TrainSpec, device: torch.device, context: StepContext) -> None:
    """Store the speed of this attempt, if it trained long enough to tell; a training does not fail because this does."""
    speed = recorder.speed(spec.run_key, device=device_name(device), devices=spec.resources.num_ranks)
    if speed is None:
        return
    try:
        store_speed(speed, spec, spec.resources, context.store, context.layout)
    except CelebditError as error:
        context.events.note(f"the speed of this training was not stored, plans of later ones will estimate it: {error.message}")


def device_name(device: torch.device) -> str:
    """Return a GPU as the table of devices names it, else as CUDA does; a CPU by its model and cores."""
    if device.type != "cuda":
        return cpu_name()
    name = torch.cuda.get_device_name(device)
    listed = device_named(name)
    return name if listed is None else listed.name
