"""How far `celebdit plan` is off on this machine's CPU: the time and the memory that it says beside those of the training itself.

For each setting the plan measures its few steps, and then the training runs to its last step in another process, which keeps memory as a
rank does, on random images, with its sample grids, without servers and checkpoints. A third process, which has imported what a rank
imports, trains a few steps and draws a grid; its peak resident memory is compared. Prints one JSON line per setting; on a machine that
others use compare several lines of time.

    python -m benchmarks.plan_calibration [--memory] ["smoke training.total_steps=300" ...]

With `--memory` it trains only the few steps and compares memory alone.
"""

import argparse
import importlib
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.resident_memory import resident_bytes
from components.system.heap import HEAP
from pipeline.config import RunConfig, load_config
from pipeline.planning.costs import Costs, costs_of
from pipeline.planning.local_speed import trainer_on_noise

_SETTINGS = (
    "smoke training.total_steps=600 training.sample_every_steps=100",
    "demo training.total_steps=40 training.sample_every_steps=20",
    "demo training.total_steps=40 training.sample_every_steps=40 training.batch_images=16",
)


_MEMORY_STEPS = 4
_RANK_MODULES = ("components.train.worker", "components.tracking.client", "torch._dynamo")


def main(arguments: Sequence[str] | None = None) -> None:
    """Print one JSON line per setting."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory", action="store_true", help="compare memory alone")
    parser.add_argument("settings", nargs="*", default=_SETTINGS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    for name, value in HEAP.items():  # of the processes that are started from here
        os.environ.setdefault(name, value)
    for setting in options.settings:
        print(json.dumps(calibrate(setting.split(), with_time=not options.memory)), flush=True)


def calibrate(words: Sequence[str], *, with_time: bool = True) -> dict[str, Any]:
    """Return the seconds and the bytes that the plan says and that the training takes, on the clock, and the training's processor time."""
    config = load_config(words[0], [*words[1:], "resources.processes=1", "resources.threads=1"])
    costs = costs_of(config, None)
    times = _time(config, costs) if with_time else {}
    return {"setting": " ".join(words), **times, **_memory(config, costs)}


def _time(config: RunConfig, costs: Costs) -> dict[str, float]:
    (cost,) = costs.devices
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        took_s, took_cpu_s = pool.apply(_train, (config,))
    planned_s = cost.training_hours * 3600
    return {
        "planned_s": round(planned_s, 2),
        "took_s": round(took_s, 2),
        "took_cpu_s": round(took_cpu_s, 2),
        "planned_over_taken": round(planned_s / took_s, 3),
    }


def _train(config: RunConfig) -> tuple[float, float]:
    """Train to the last step, and return the seconds on the clock and of the processor."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="celebdit-calibration-") as folder:
        trainer = trainer_on_noise(config.recipe, Path(folder))
        started_s, started_cpu_s = time.perf_counter(), time.process_time()
        trainer.run()
        return time.perf_counter() - started_s, time.process_time() - started_cpu_s


def _memory(config: RunConfig, costs: Costs) -> dict[str, float]:
    (cost,) = costs.devices
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        base_bytes, peak_bytes = pool.apply(_peak_bytes, (config,))
    return {
        "planned_mb": round(cost.needed_gb * 1e3),
        "peak_mb": round(peak_bytes / 1e6),
        "without_tensors_mb": round(base_bytes / 1e6),
        "planned_over_peak": round(cost.needed_gb * 1e9 / peak_bytes, 3),
    }


def _peak_bytes(config: RunConfig) -> tuple[int, int]:
    """Return the resident memory of a process with the imports of a rank, and its peak after some steps and one grid of samples."""
    torch.set_num_threads(1)
    for name in _RANK_MODULES:
        importlib.import_module(name)
    base = resident_bytes("VmRSS")
    training = config.training.model_copy(update={"total_steps": _MEMORY_STEPS, "sample_every_steps": _MEMORY_STEPS})
    sampling = config.sampling.model_copy(update={"num_steps": 2})
    with tempfile.TemporaryDirectory(prefix="celebdit-calibration-") as folder:
        trainer_on_noise(config.recipe.model_copy(update={"training": training, "sampling": sampling}), Path(folder)).run()
    return base, resident_bytes("VmHWM")


if __name__ == "__main__":
    main()
