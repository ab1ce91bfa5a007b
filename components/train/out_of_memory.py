"""Advice on settings after memory ran out.

Promises: every suggestion keeps the training the same, with more passes or more recomputation, and names the setting and its value.
"""

import re

import torch

from components.errors import BadInput
from components.reports.plural import plural
from components.runtime.memory_hint import smaller_passes
from components.train.spec import TrainSpec
from model.batching import plan_batch
from model.distributed import World

_CPU_REFUSED = re.compile(r"DefaultCPUAllocator: (can't allocate memory|not enough memory)")


def out_of_memory(error: RuntimeError, spec: TrainSpec, world: World, device: torch.device) -> BadInput | None:
    """Return the error to raise if `error` means that memory ran out, else None."""
    if not isinstance(error, torch.OutOfMemoryError) and not _CPU_REFUSED.search(str(error)):
        return None
    training = spec.training
    plan = training.batch_plan(world.size)
    total = f" (it has {torch.cuda.get_device_properties(device).total_memory / 1e9:.0f} GB)" if device.type == "cuda" else ""
    attempt = f" while allocating {size}" if (size := _requested_memory(str(error))) else ""
    message = (
        f"memory of {device} ran out{attempt}{total}: {plural(plan.per_pass, 'image')} of {spec.network.image_px} px per pass and process, "
        f"{plural(plan.passes, 'pass', 'passes')} per step"
    )
    options = []
    if plan.per_pass > 1:
        half = plan_batch(training.batch_images, world.size, plan.per_pass // 2)
        options.append(smaller_passes(half.per_pass, half.passes))
    if not training.activation_checkpointing:
        options.append("training.activation_checkpointing=true (about a third more time)")
    if training.precision == "float32" and device.type == "cuda":
        options.append("training.precision=bfloat16 (a new run)")
    if training.data_on_device:
        options.append("training.data_on_device=false")
    options.append(f"more resources.processes than {spec.resources.processes}")
    return BadInput(message, hint="set " + ", or ".join(options))


def _requested_memory(text: str) -> str | None:
    """Return the size of the failed allocation, as the allocator reports it."""
    match = re.search(r"Tried to allocate ([0-9.]+ [KMG]iB)", text) or re.search(r"tried to allocate ([0-9]+) bytes", text)
    if match is None:
        return None
    return match[1] if match[1].endswith("B") else f"{int(match[1]) / 2**20:.0f} MiB"
