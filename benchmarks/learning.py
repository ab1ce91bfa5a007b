"""What networks learn in equal processor time: `OMP_NUM_THREADS=1 python -m benchmarks.learning --side 32 --budget 60 --out learning.json`.

Promises: all contenders of one run see the same drawn faces in the same order with the same noise and take the project's own training
step, but for those that end in `-own-recipe`, which order and mirror the faces themselves (`peer_recipes.py`). Each gets as many steps as
fit the same processor time, measured in turns before the first training; the learning rate decays over just these steps. Samples of all are
scored alike, and so is the error of the clean image on held-out and on training faces at fixed times and noise. The JSON is complete after
each training. See `contenders.py` for what is compared.
"""

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy.stats import t as student_t

from benchmarks.learning_run import HELD_OUT_FACES, Size, draw_faces, train_and_sample
from benchmarks.learning_scores import Scorer
from benchmarks.peer_recipes import NAMES, training_of
from model.config import SamplingConfig
from model.dataset import Pack, PackWriter, open_pack

_CALIBRATION_STEPS = 15
_SAMPLERS = (
    ("heun", 20),
    ("heun", 10),
    ("euler", 20),
    ("dpmpp_2m", 20),
    ("dpmpp_2m", 12),
    ("dpmpp_2m", 8),
    ("unipc", 20),
    ("unipc", 12),
    ("unipc", 8),
)
_SAMPLINGS = [SamplingConfig(sampler=name, num_steps=steps, time_shift=shift, seed=0) for name, steps in _SAMPLERS for shift in (1.0, 2.0)]
_SHOWN = 8


def learn(size: Size, names: Sequence[str], seeds: Sequence[int], out: Path, *, sampler_table: bool) -> dict[str, Any]:
    """Train every contender with every seed, score its samples, and return the report, which is also at `out`."""
    with tempfile.TemporaryDirectory() as folder:
        pack = pack_faces(Path(folder), size.faces, size.side_px)
        first_other = size.faces + HELD_OUT_FACES
        scorer = Scorer(
            draw_faces(range(first_other, first_other + size.other_faces), size.side_px) if size.other_faces else np.array(pack.images)
        )
        steps = size.steps | _steps_within(size, [name for name in names if name not in size.steps], pack)
        report: dict[str, Any] = {
            "size": asdict(size),
            "facts": _facts(),
            "steps": steps,
            "real": scorer.floor(size.samples),
            "training_faces": scorer.scores(np.array(pack.images[: size.samples])) if size.other_faces else None,
            "runs": [],
            "samplers": [],
        }
        rows: list[np.ndarray] = []
        for seed in seeds:
            for name in names:
                samplings = [SamplingConfig(sampler=size.sampler, num_steps=size.sampler_steps, seed=0)]
                if sampler_table and name == names[0]:
                    samplings += _SAMPLINGS
                run, (images, *others) = train_and_sample(name, seed, steps[name], size, Path(folder), samplings)
                run |= scorer.scores(images)
                report["runs"].append(run)
                rows.append(images[:_SHOWN])
                report["samplers"] += [
                    {"seed": seed, "sampler": sampling.sampler, "steps": sampling.num_steps, "time_shift": sampling.time_shift}
                    | scorer.scores(drawn)
                    for sampling, drawn in zip(samplings[1:], others, strict=True)
                ]
                out.write_text(json.dumps(report, indent=1))
                print(json.dumps(run), file=sys.stderr, flush=True)
        report["summary"] = summary_of(report["runs"])
        out.write_text(json.dumps(report, indent=1))
        _write_grid([*rows, np.array(pack.images[:_SHOWN])], out.with_suffix(".png"))
    return report


def summary_of(runs: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return mean and half of the 95 % interval over the seeds (Student's t) of each value, by contender."""
    names = list(dict.fromkeys(run["contender"] for run in runs))
    return {name: {key: _mean_and_half([run[key] for run in runs if run["contender"] == name]) for key in Scorer.KEYS} for name in names}


def _mean_and_half(values: Sequence[float]) -> list[float]:
    spread = statistics.stdev(values) if len(values) > 1 else float("nan")
    half = student_t.ppf(0.975, len(values) - 1) * spread / len(values) ** 0.5
    return [round(statistics.fmean(values), 4), round(float(half), 4)]


def pack_faces(folder: Path, count: int, side_px: int) -> Pack:
    """Return a pack of `count` drawn faces in `folder`."""
    keys = [f"{index:05d}" for index in range(count)]
    with PackWriter(folder, shape=(side_px, side_px), keys=keys, dataset_digest="0" * 64) as add:
        for face in draw_faces(range(count), side_px):
            add(face)
    return open_pack(folder)


def _steps_within(size: Size, names: Sequence[str], pack: Pack) -> dict[str, int]:
    """Return how many steps of each contender fit the budget; they take turns, so that other load on the machine meets all alike."""
    trainings = {
        name: training_of(name, pack, side_px=size.side_px, batch_images=size.batch_images, seed=99, steps=10**6) for name in names
    }
    spent_s: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(_CALIBRATION_STEPS):
        for name, training in trainings.items():
            began_s = time.process_time()
            training.step()
            spent_s[name].append(time.process_time() - began_s)
    return {name: max(2, round(size.budget_s / statistics.median(spent_s[name]))) for name in names}


def _facts() -> dict[str, Any]:
    return {
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": "cpu",
        "argv": sys.argv[1:],
    }


def _write_grid(rows: Sequence[np.ndarray], path: Path) -> None:
    """Write one row of samples per training, in the order of the report, and real images below."""
    Image.fromarray(np.concatenate([np.concatenate(list(row), axis=1) for row in rows], axis=0)).save(path)


def main() -> None:
    """Run the benchmark; the summary goes to stdout."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=32, help="side of the images in pixels")
    parser.add_argument("--budget", type=float, default=60, help="processor seconds of a training")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0, help="to add seeds to an earlier report")
    parser.add_argument("--faces", type=int, default=1600)
    parser.add_argument("--other-faces", type=int, default=0, help="compare samples with so many faces that no training sees")
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--sampler", default="heun")
    parser.add_argument("--sampler-steps", type=int, default=10)
    parser.add_argument("--contenders", default="celebdit,plain-dit", help=f"of {', '.join(NAMES)}, separated by commas")
    parser.add_argument("--steps", default="", help="NAME=STEPS,...: contenders whose steps within the budget an earlier run measured")
    parser.add_argument("--sampler-table", action="store_true", help="also score several samplers on the weights of the first contender")
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args()
    size = Size(
        chosen.side,
        chosen.batch,
        chosen.budget,
        chosen.faces,
        chosen.samples,
        chosen.sampler,
        chosen.sampler_steps,
        chosen.other_faces,
        steps={name: int(count) for name, _, count in (item.partition("=") for item in chosen.steps.split(",") if item)},
    )
    seeds = range(chosen.first_seed, chosen.first_seed + chosen.seeds)
    report = learn(size, chosen.contenders.split(","), seeds, chosen.out, sampler_table=chosen.sampler_table)
    print(json.dumps(report["summary"], indent=1))


if __name__ == "__main__":
    main()
