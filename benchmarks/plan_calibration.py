"""How far `celebdit plan` is off on this machine's CPU: the time that it says beside that of the training itself.

For each setting the plan measures its few steps, and then the training runs to its last step in one process, on random images, with its
sample grids, without servers and checkpoints. Prints one JSON line per setting; on a machine that others use compare several lines.

    python -m benchmarks.plan_calibration ["smoke training.total_steps=300" ...]
"""

import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pipeline.config import load_config
from pipeline.planning.costs import costs_of
from pipeline.planning.local_speed import trainer_on_noise

_SETTINGS = (
    "smoke training.total_steps=600 training.sample_every_steps=100",
    "demo training.total_steps=40 training.sample_every_steps=20",
    "demo training.total_steps=40 training.sample_every_steps=40 training.batch_images=16",
)


def main(settings: Sequence[str]) -> None:
    """Print one JSON line per setting."""
    torch.set_num_threads(1)
    for setting in settings or _SETTINGS:
        print(json.dumps(calibrate(setting.split())), flush=True)


def calibrate(words: Sequence[str]) -> dict[str, Any]:
    """Return the seconds that the plan says and that the training takes, on the clock, and the training's processor time."""
    config = load_config(words[0], [*words[1:], "resources.processes=1", "resources.threads=1"])
    (cost,) = costs_of(config, None).devices
    with tempfile.TemporaryDirectory(prefix="celebdit-calibration-") as folder:
        trainer = trainer_on_noise(config.recipe, Path(folder))
        started_s, started_cpu_s = time.perf_counter(), time.process_time()
        trainer.run()
        took_s, took_cpu_s = time.perf_counter() - started_s, time.process_time() - started_cpu_s
    planned_s = cost.training_hours * 3600
    return {
        "setting": " ".join(words),
        "planned_s": round(planned_s, 2),
        "took_s": round(took_s, 2),
        "took_cpu_s": round(took_cpu_s, 2),
        "planned_over_taken": round(planned_s / took_s, 3),
    }


if __name__ == "__main__":
    main(sys.argv[1:])
