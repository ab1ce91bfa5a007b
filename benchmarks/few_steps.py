"""Samplers at few network calls on the weights of one training: `python -m benchmarks.few_steps --weights FILE --images FILE --out FILE`.

Promises: all draw the same images, from the same noise, and are compared with the same training images by the functions of the evaluate
step. `--weights` is an average of a run (`checkpoints/step-*/ema-0.1.safetensors`), `--images` the `images.npy` of its dataset's pack.
Writes JSON after each sampler.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from benchmarks.learning_scores import Scorer
from model.config import SamplingConfig
from model.generator import Generator
from model.sampler_table import SAMPLERS
from pipeline.config import load_config

_PASS_IMAGES = 32
_REFERENCE = ("heun", 39, 1.0)
"""What `demo` is evaluated with: sampler, network calls, time shift."""


def settings() -> list[tuple[str, int, float]]:
    """Return each sampler at 8, 12 and 20 network calls, evenly spaced and with more steps at high noise."""
    names = ("unipc", "dpmpp_2m", "heun", "euler")
    return [_REFERENCE, *((name, calls, shift) for shift in (1.0, 2.0) for calls in (20, 12, 8) for name in names)]


def steps_within(sampler: str, calls: int) -> int:
    """Return the number of steps that take at most `calls` network calls."""
    return max(steps for steps in range(1, calls + 1) if SAMPLERS[sampler].calls(steps) <= calls)


def measure(generator: Generator, scorer: Scorer, sampler: str, calls: int, shift: float, count: int) -> dict[str, Any]:
    """Draw `count` images and return their scores, with the processor time of drawing."""
    steps = steps_within(sampler, calls)
    config = SamplingConfig.model_validate({"sampler": sampler, "num_steps": steps, "time_shift": shift})
    began_s = time.process_time()
    images = generator.draw(config, range(count), pass_images=_PASS_IMAGES).permute(0, 2, 3, 1).numpy()
    cpu_s = round(time.process_time() - began_s, 1)
    return {"sampler": sampler, "steps": steps, "time_shift": shift, "cpu_s": cpu_s, **scorer.scores(images)}


def main() -> None:
    """Measure all samplers and write the report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.few_steps", description="Compare samplers at few network calls.")
    parser.add_argument("--preset", default="demo", help="preset of the network (default: demo)")
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--count", type=int, default=2000, help="images of each sampler (default: 2000)")
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    config = load_config(chosen.preset)
    generator = Generator(load_file(chosen.weights), config.network, config.diffusion, device=torch.device("cpu"))
    scorer = Scorer(np.load(chosen.images, allow_pickle=False))
    rows = []
    for sampler, calls, shift in settings():
        rows.append(measure(generator, scorer, sampler, calls, shift, chosen.count))
        chosen.out.write_text(json.dumps(rows, indent=1))
        print(json.dumps(rows[-1]), flush=True)


if __name__ == "__main__":
    main()
