"""Store how fast a finished training was, for the plans of later ones.

Promises: waits for object storage for a few seconds at most, because the process may have been asked to stop.
"""

import threading

import torch

from components.errors import Failure
from components.runtime.context import StepContext
from components.stores.measured_speed import SpeedRecorder, cpu_name, store_speed
from components.train.spec import TrainSpec
from model.devices import device_named

_TIMEOUT_S = 5.0
"""Well below the time that ranks have to stop (`GRACE_S`); no training needs what is stored here."""


def report_speed(recorder: SpeedRecorder, spec: TrainSpec, device: torch.device, context: StepContext) -> None:
    """Store the speed of this attempt, if it trained long enough to tell; a training does not fail because this does."""
    speed = recorder.speed(spec.run_key, device=device_name(device), devices=spec.resources.num_ranks)
    if speed is None:
        return
    reasons = [f"object storage did not answer within {_TIMEOUT_S:g} s"]

    def store() -> None:
        try:
            store_speed(speed, spec, spec.resources, context.store, context.layout)
            reasons.clear()
        except Exception as error:
            reasons[:] = [Failure.of(error).message]

    thread = threading.Thread(target=store, name="speed", daemon=True)
    thread.start()
    thread.join(_TIMEOUT_S)
    for reason in reasons:
        context.events.note(f"the speed of this training was not stored, plans of later ones will estimate it: {reason}")


def device_name(device: torch.device) -> str:
    """Return a GPU as the table of devices names it, else as CUDA does; a CPU by its model and cores."""
    if device.type != "cuda":
        return cpu_name()
    name = torch.cuda.get_device_name(device)
    listed = device_named(name)
    return name if listed is None else listed.name
