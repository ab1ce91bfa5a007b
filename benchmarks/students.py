"""What a student of few steps costs beside its teacher: `python -m benchmarks.students --preset demo --out FILE`.

Promises: the training steps are those of the trainer, on random images, and the images are drawn by `Generator`; what is compared takes
turns in this one process of one thread, and processor time is measured. Weights are initial ones: their values do not change the time.
Quality is measured elsewhere; see docs/experiments/distillation.md. Writes one JSON object.
"""

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from components.stores.measured_speed import cpu_name
from model.config import STUDENT_SAMPLER, SamplingConfig
from model.denoiser import build_denoiser
from model.generator import Generator
from model.sampler_table import SAMPLERS
from pipeline.config import RunConfig, load_config
from pipeline.planning.local_speed import trainer_on_noise

_PASS_IMAGES = 50
_TEACHER = "a" * 16
"""A run key that is not looked up."""


def samplings(config: RunConfig, steps: tuple[int, ...]) -> list[tuple[str, SamplingConfig]]:
    """Return how images are drawn: by the preset, then by a teacher and a student in each of `steps`."""
    own, few = config.sampling, {"spacing": "linspace", "time_shift": 1.0}
    rows = [("teacher", own)]
    for role, sampler in (("teacher", "unipc"), ("student", STUDENT_SAMPLER)):
        rows += [(role, own.model_copy(update={"sampler": sampler, "num_steps": count, **few})) for count in steps]
    return rows


def by_turns(calls: Mapping[str, Callable[[], object]], turns: int) -> dict[str, list[float]]:
    """Return the processor seconds of each call, once in each turn; a first round is not counted."""
    taken_s: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(turns + 1):
        for name, call in calls.items():
            began_s = time.process_time()
            call()
            if turn > 0:
                taken_s[name].append(time.process_time() - began_s)
    return taken_s


def training_costs(preset: str, *, steps: int, turns: int) -> dict[str, Any]:
    """Measure a step of a training from initial weights and one of a student, in turns of `steps` steps."""
    student = ["distill.teacher=" + _TEACHER, f"sampling.sampler={STUDENT_SAMPLER}", "sampling.num_steps=4", "sampling.time_shift=1.0"]
    recipes = {name: load_config(preset, changes).recipe for name, changes in (("plain", []), ("student", student))}
    with TemporaryDirectory() as folder:
        calls = {}
        for name, recipe in recipes.items():
            trainer = trainer_on_noise(recipe, Path(folder, name))
            trainer.network.train()
            calls[name] = lambda advance=trainer._advance: [advance() for _ in range(steps)]
        taken_s = by_turns(calls, turns)
    step_ms = {name: [1e3 * cpu_s / steps for cpu_s in values] for name, values in taken_s.items()}
    ratios = [student_ms / plain_ms for student_ms, plain_ms in zip(step_ms["student"], step_ms["plain"], strict=True)]
    return {
        "batch_images": recipes["plain"].training.batch_images,
        "steps_per_turn": steps,
        "cpu_ms_per_step": {name: _summary(values) for name, values in step_ms.items()},
        "student_over_plain": _summary(ratios),
    }


def drawing_costs(config: RunConfig, *, images: int, turns: int, student_steps: tuple[int, ...]) -> list[dict[str, Any]]:
    """Measure drawing `images` images with each sampler; the first row is that of the configuration."""
    weights = build_denoiser(config.network, seed=0).state_dict()
    generator = Generator(weights, config.network, config.diffusion, device=torch.device("cpu"))
    # By number: the preset may sample as one of the others does.
    rows = {f"row {number}": row for number, row in enumerate(samplings(config, student_steps))}
    calls = {
        name: lambda sampling=sampling: generator.draw(sampling, range(images), pass_images=min(images, _PASS_IMAGES))
        for name, (_, sampling) in rows.items()
    }
    taken_s = by_turns(calls, turns)
    first = next(iter(taken_s.values()))
    return [
        {
            "weights": role,
            "sampler": sampling.sampler,
            "steps": sampling.num_steps,
            "spacing": sampling.spacing,
            "time_shift": sampling.time_shift,
            "calls": SAMPLERS[sampling.sampler].calls(sampling.num_steps),
            "cpu_s_per_1000_images": _summary([1000 * cpu_s / images for cpu_s in taken_s[name]]),
            "share_of_first": _summary([cpu_s / of_first for cpu_s, of_first in zip(taken_s[name], first, strict=True)]),
        }
        for name, (role, sampling) in rows.items()
    ]


def _summary(values: list[float]) -> dict[str, float]:
    """Return the median, least and largest value."""
    named = {"median": statistics.median(values), "least": min(values), "largest": max(values)}
    return {name: round(value, 4) for name, value in named.items()}


def main() -> None:
    """Measure and write the report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.students", description="Measure what a student costs beside its teacher.")
    parser.add_argument("--preset", default="demo", help="preset of the network (default: demo)")
    parser.add_argument("--turns", type=int, default=5, help="turns of each measurement (default: 5)")
    parser.add_argument("--steps", type=int, default=8, help="training steps of a turn (default: 8)")
    parser.add_argument("--images", type=int, default=100, help="images drawn in a turn (default: 100)")
    parser.add_argument("--student-steps", type=int, nargs="+", default=[8, 4], help="steps of the students (default: 8 4)")
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    report = {
        "benchmark": "students",
        "command": "python -m benchmarks.students " + " ".join(sys.argv[1:]),
        "device": f"{cpu_name()} (CPU, one thread)",
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "preset": chosen.preset,
        "turns": chosen.turns,
        "training": training_costs(chosen.preset, steps=chosen.steps, turns=chosen.turns),
        "drawing": drawing_costs(
            load_config(chosen.preset), images=chosen.images, turns=chosen.turns, student_steps=tuple(chosen.student_steps)
        ),
    }
    chosen.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
