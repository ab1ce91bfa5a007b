"""Training metrics of the window since the last metric point: loss, gradient norm, throughput, data wait, utilisation and cost.

Promises: nothing makes the device wait before `read`; losses and norms are part of a run's state, and those of all ranks, so that a run
that was resumed, with any number of ranks, reports the same means; device time adds up over all attempts. Clock and hardware are
parameters.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from model.config import TrainingRecipe
from model.devices import device_named
from model.distributed import World, mean_over_ranks
from model.flops import forward_flops, passes_per_image


@dataclass(frozen=True)
class Hardware:
    """Rates from which utilisation and cost are computed."""

    hours_key: str
    """Metric under which device hours are reported: the clock times the ranks, whatever share of its core a rank has got."""
    price_per_device_hour: float | None = None
    step_flops: float | None = None
    """Floating-point operations of one optimiser step over all ranks, forward and backward, without recomputation; None: not reported."""
    peak_flops: float | None = None
    """Peak rate of one device, None if unknown: then no utilisation is reported."""


def hardware_of(recipe: TrainingRecipe, device: torch.device, *, price_per_device_hour: float | None) -> Hardware:
    """Return the rates of `device`: hours everywhere, floating-point operations on CUDA alone."""
    if device.type != "cuda":
        return Hardware(hours_key="cost/cpu_rank_hours", price_per_device_hour=price_per_device_hour)
    gpu, training = device_named(torch.cuda.get_device_name(device)), recipe.training
    flops = forward_flops(recipe.network) * passes_per_image(distilled=recipe.distill is not None)
    return Hardware(
        hours_key="cost/gpu_hours",
        price_per_device_hour=price_per_device_hour,
        step_flops=flops * training.batch_images,
        peak_flops=None if gpu is None else gpu.peak_flops(bfloat16=training.precision == "bfloat16"),
    )


class Meter:
    """Accumulates the metrics of one window after another."""

    def __init__(self, world: World, hardware: Hardware, *, batch_images: int, device: torch.device, clock: Callable[[], float]) -> None:
        self._world = world
        self._hardware = hardware
        self._batch_images = batch_images
        self._device = device
        self._clock = clock
        self._losses: list[Tensor] = []
        self._norms: list[Tensor] = []
        self._device_hours = 0.0
        self.start()

    def start(self) -> None:
        """Start a window now; earlier time counts as neither training nor waiting."""
        self._window_start_s = self._hours_counted_until_s = self._clock()
        self._waited_s = 0.0
        self._steps = 0

    def add_wait(self, seconds: float) -> None:
        """Add time in which a step waited for its images."""
        self._waited_s += seconds

    def exclude(self, seconds: float) -> None:
        """Exclude time that was not spent on training, such as sampling."""
        self._window_start_s += seconds

    def add_step(self, loss: Tensor, norm: Tensor) -> None:
        """Add one optimiser step by this rank's mean loss and the gradient norm, both still on the device. A collective.

        The losses of the ranks are averaged at each step, not at the end of the window: rank 0 alone stores the state of an open window,
        at a step that the others do not know of.
        """
        self._losses.append(mean_over_ranks(loss, self._world))
        self._norms.append(norm)
        self._steps += 1

    def read(self) -> dict[str, float]:
        """Return the window's metrics over all ranks and start the next window."""
        loss, norm = float(torch.stack(self._losses).mean()), float(torch.stack(self._norms).mean())
        elapsed_s = max(self._clock() - self._window_start_s, 1e-9)
        rate = self._steps / elapsed_s
        self._count_hours()
        hardware, devices = self._hardware, self._world.size
        values = {
            "train/loss": loss,
            "train/grad_norm": norm,
            "perf/images_per_s": rate * self._batch_images,
            "perf/data_wait_share": self._waited_s / elapsed_s,
            hardware.hours_key: self._device_hours,
        }
        if hardware.step_flops is not None:
            values["perf/tflops_per_device"] = rate * hardware.step_flops / devices / 1e12
            if hardware.peak_flops is not None:
                values["perf/mfu"] = rate * hardware.step_flops / (devices * hardware.peak_flops)
        if hardware.price_per_device_hour is not None:
            values["cost/total"] = self._device_hours * hardware.price_per_device_hour
        if self._device.type == "cuda":
            values["perf/gpu_mem_gb"] = torch.cuda.max_memory_allocated(self._device) / 1e9
        self._losses, self._norms = [], []
        self.start()
        return values

    def _count_hours(self) -> None:
        now_s = self._clock()
        self._device_hours += (now_s - self._hours_counted_until_s) * self._world.size / 3600
        self._hours_counted_until_s = now_s

    def facts(self) -> dict[str, list[float]]:
        """Return the state of an unfinished window as JSON, for a resumed run: means over all ranks, one per step."""
        return {
            "losses": [float(v) for v in self._losses],
            "norms": [float(v) for v in self._norms],
        }

    @property
    def device_hours(self) -> float:
        """Device hours of this run so far, over all attempts."""
        self._count_hours()
        return self._device_hours

    def restore(self, facts: dict[str, list[float]], *, device_hours: float) -> None:
        """Continue from `facts`."""
        self._losses = [torch.tensor(v, device=self._device) for v in facts["losses"]]
        self._norms = [torch.tensor(v, device=self._device) for v in facts["norms"]]
        self._device_hours = device_hours
