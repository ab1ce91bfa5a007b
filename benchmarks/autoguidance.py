"""Autoguidance by a smaller network that was trained for a sixteenth of the steps, at 32 pixels.

Run it with `OMP_NUM_THREADS=1 python -m benchmarks.autoguidance --out autoguidance.json`.

Promises: the model is `demo`, its guide `small-guide` of `contenders.py` with the same seed and recipe; all weights of the guidance draw
from the same noise and are scored alike. The JSON is complete after each row. See Karras et al. 2024, "Guiding a diffusion model with a bad
version of itself".
"""

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.contenders import Training
from benchmarks.learning import pack_faces
from benchmarks.learning_scores import Scorer
from model.config import SamplingConfig
from model.dataset import Pack

_MODEL, _GUIDE = "celebdit-local-share-tenth", "small-guide"
_SHARE_OF_STEPS = 16
_WEIGHTS = (1.0, 1.1, 1.25, 1.5)


@dataclass(frozen=True)
class Size:
    """What all rows share."""

    side_px: int = 32
    batch_images: int = 32
    steps: int = 900
    faces: int = 2400
    samples: int = 1000
    sampler: str = "unipc"
    sampler_steps: int = 20


def measure_guidance(size: Size, seeds: Sequence[int], out: Path) -> list[dict[str, Any]]:
    """Train model and guide with every seed, score the samples of every weight, and return the rows, which are also at `out`."""
    rows: list[dict[str, Any]] = []
    sampling = SamplingConfig(sampler=size.sampler, num_steps=size.sampler_steps, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        pack = pack_faces(Path(folder), size.faces, size.side_px)
        scorer = Scorer(np.array(pack.images))
        for seed in seeds:
            model, weak = _train(_MODEL, pack, size, seed, size.steps), _train(_GUIDE, pack, size, seed, size.steps // _SHARE_OF_STEPS)
            for weight in _WEIGHTS:
                began_s = time.process_time()
                images = model.sample(size.samples, sampling, guide=weak if weight != 1 else None, weight=weight)
                cpu_s = round(time.process_time() - began_s, 1)
                rows.append({"seed": seed, "weight": weight, "cpu_s": cpu_s, **scorer.scores(images)})
                out.write_text(json.dumps(rows, indent=1))
                print(json.dumps(rows[-1]), flush=True)
            rows.append({"seed": seed, "guide_alone": True, **scorer.scores(weak.sample(size.samples, sampling))})
            out.write_text(json.dumps(rows, indent=1))
    return rows


def _train(name: str, pack: Pack, size: Size, seed: int, steps: int) -> Training:
    training = Training(name, pack, side_px=size.side_px, batch_images=size.batch_images, seed=seed, steps=steps)
    for _ in range(steps):
        training.step()
    return training


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.autoguidance", description="Score samples with and without a weaker guide.")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=Size.steps, help=f"steps of the model; its guide gets 1/{_SHARE_OF_STEPS} of them")
    parser.add_argument("--samples", type=int, default=Size.samples)
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    measure_guidance(Size(steps=chosen.steps, samples=chosen.samples), range(chosen.seeds), chosen.out)


if __name__ == "__main__":
    main()
