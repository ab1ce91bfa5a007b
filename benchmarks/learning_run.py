"""One training of `learning.py` with its samples, in a process of its own.

Promises: the peak memory is that of this training alone, and the numbers are the same as in any other process.
"""

import multiprocessing
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peer_recipes import training_of
from benchmarks.resident_memory import resident_bytes
from components.ingest.sources.synthetic import draw_face
from model.config import SamplingConfig
from model.dataset import open_pack

HELD_OUT_FACES = 128
_HELD_OUT_TIMES = (0.05, 0.2, 0.5, 0.8, 0.95)


@dataclass(frozen=True)
class Size:
    """What all trainings of one run share."""

    side_px: int
    batch_images: int
    budget_s: float
    """Processor time of a training."""
    faces: int
    samples: int
    sampler: str
    sampler_steps: int
    other_faces: int = 0
    """Faces that samples are compared with, and that no training sees; 0: samples are compared with the training faces."""
    steps: dict[str, int] = field(default_factory=dict)
    """Steps of contenders that are not measured again, from an earlier report with the same budget."""


def train_and_sample(
    name: str, seed: int, steps: int, size: Size, folder: Path, samplings: Sequence[SamplingConfig]
) -> tuple[dict[str, Any], list[np.ndarray]]:
    """Train on the pack in `folder` in a new process; return what was measured, and images (n, h, w, 3), uint8, for each of `samplings`.

    The processor time of sampling is that of the first of `samplings`.
    """
    with ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_train_and_sample, name, seed, steps, size, folder, samplings).result()


def _train_and_sample(
    name: str, seed: int, steps: int, size: Size, folder: Path, samplings: Sequence[SamplingConfig]
) -> tuple[dict[str, Any], list[np.ndarray]]:
    pack = open_pack(folder)
    training = training_of(name, pack, side_px=size.side_px, batch_images=size.batch_images, seed=seed, steps=steps)
    before_mb = resident_bytes("VmHWM") // 2**20
    began_s = time.process_time()
    losses = [training.step() for _ in range(steps)]
    trained_s = time.process_time() - began_s
    peak_mb = resident_bytes("VmHWM") // 2**20
    began_s = time.process_time()
    images = [training.sample(size.samples, samplings[0])]
    sampled_s = time.process_time() - began_s
    images += [training.sample(size.samples, sampling) for sampling in samplings[1:]]
    run = {
        "contender": name,
        "seed": seed,
        "parameters_m": round(training.num_parameters / 1e6, 2),
        "steps": steps,
        "train_cpu_s": round(trained_s, 1),
        "images_per_cpu_s": round(steps * size.batch_images / trained_s, 1),
        "sampled_per_cpu_s": round(size.samples / sampled_s, 1),
        "loss": round(statistics.fmean(losses[-max(1, steps // 10) :]), 4),
        "memory_before_mb": before_mb,
        "peak_memory_mb": peak_mb,
        "held_out_errors": training.errors(draw_faces(range(size.faces, size.faces + HELD_OUT_FACES), size.side_px), _HELD_OUT_TIMES),
        "training_errors": training.errors(np.array(pack.images[:HELD_OUT_FACES]), _HELD_OUT_TIMES),
    }
    return run, images


def draw_faces(indices: range, side_px: int) -> np.ndarray:
    """Return drawn faces (n, side_px, side_px, 3), uint8."""
    return np.stack([np.asarray(draw_face(0, index, side_px)) for index in indices])
