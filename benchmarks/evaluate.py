"""How fast an evaluation is: features and distance beside torch-fidelity's own `calculate_metrics`, ranks, cached references, samplers.

Prints one JSON object. Everything is measured in one run on the same images, in turns and repeated, and the best of the repeats counts;
compare the ratios, not the seconds (on a machine that others use, those of processor times: ranks that share no core with others are as
fast). Inception's weights are random here: they have the real shapes, which is all that speed depends on.

    python benchmarks/evaluate.py [--images 64] [--processes 2] [--repeats 2] [--device cpu]
"""

# ruff: noqa: E402 - threads and the tests' support code must be set up before torch and they are imported

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(variable, "1")
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

import torch
import torch_fidelity
from celebdit_testing.inception import write_inception
from celebdit_testing.recipes import faces
from celebdit_testing.servers import ACCESS_KEY, SECRET_KEY, rclone_server
from torch.utils.data import Dataset

from components.evaluate.config import EvaluationConfig
from components.evaluate.reference import find_reference, keep_reference
from components.features.build import build_extractor
from components.features.frechet import frechet_distance
from components.features.moments import statistics
from components.storage import StoreUri, connect, file_sha256
from model.denoiser import build_denoiser
from model.generator import Generator
from model.sampler_table import SAMPLERS
from pipeline.config import load_config

BATCH = 16
IMAGE_PX = 256
FEATURES = 2048
SAMPLED, SAMPLER_STEPS = 32, 10
ANYWHERE = connect("http://127.0.0.1:9")


class Images(Dataset[torch.Tensor]):
    """Images in memory, as torch-fidelity wants them."""

    def __init__(self, images: torch.Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.images[index]


def draw_images(count: int) -> torch.Tensor:
    """Return as many images as asked for, of a few drawn faces."""
    some = torch.from_numpy(faces(min(count, 32), IMAGE_PX)).permute(0, 3, 1, 2)
    return some.repeat(-(-count // len(some)), 1, 1, 1)[:count].contiguous()


def measure_ours(weights: Path, first: torch.Tensor, second: torch.Tensor, device: torch.device) -> float:
    """Return the distance as the evaluation finds it, its extractor built as its workers build theirs."""
    config = EvaluationConfig(weights=str(weights), weights_sha256=file_sha256(weights), metrics=("frechet",))
    extractor = build_extractor(config, ANYWHERE, weights.parent, device)

    def features(images: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return torch.cat([extractor(batch.to(device))[0].float().cpu() for batch in images.split(BATCH)])

    return frechet_distance(statistics(features(first)), statistics(features(second)))


def measure_theirs(weights: Path, first: torch.Tensor, second: torch.Tensor, device: torch.device) -> float:
    """Return the distance as torch-fidelity finds it."""
    metrics = torch_fidelity.calculate_metrics(
        input1=Images(first),
        input2=Images(second),
        fid=True,
        cuda=device.type == "cuda",
        batch_size=BATCH,
        feature_extractor="inception-v3-compat",
        feature_extractor_weights_path=str(weights),
        cache=False,
        verbose=False,
    )
    return float(metrics["frechet_inception_distance"])


@dataclass(frozen=True)
class Taken:
    """What a call took: wall seconds, and processor seconds of this process and its ended children."""

    wall_s: float
    processor_s: float


def best_of(repeats: int, calls: dict[str, Callable[[], Any]]) -> dict[str, Taken]:
    """Return the least that each call took, the calls taken in turns."""
    taken: dict[str, list[Taken]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            began_s, used_s = time.perf_counter(), _processor_s()
            call()
            taken[name].append(Taken(time.perf_counter() - began_s, _processor_s() - used_s))
    return {name: least(times) for name, times in taken.items()}


def least(taken: Sequence[Taken]) -> Taken:
    """Return the least of each kind of time."""
    return Taken(min(t.wall_s for t in taken), min(t.processor_s for t in taken))


def _processor_s() -> float:
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def _rank(weights: Path, images: torch.Tensor, ready: Any, done: Any) -> None:
    torch.set_num_threads(1)
    config = EvaluationConfig(weights=str(weights), weights_sha256=file_sha256(weights), metrics=("frechet",))
    extractor = build_extractor(config, ANYWHERE, weights.parent, torch.device("cpu"))
    with torch.inference_mode():
        extractor(images[:2])
        ready.wait()
        began_s, used_s = time.perf_counter(), time.process_time()
        for batch in images.split(BATCH):
            extractor(batch)
    done.put(Taken(time.perf_counter() - began_s, time.process_time() - used_s))


def ranks(weights: Path, images: torch.Tensor, processes: int) -> Taken:
    """Return what the slowest of `processes` processes needs for its share of `images`, their start left out."""
    spawning = multiprocessing.get_context("spawn")
    ready, done = spawning.Barrier(processes), spawning.Queue()
    shares = [images[rank::processes].contiguous() for rank in range(processes)]
    workers = [spawning.Process(target=_rank, args=(weights, share, ready, done)) for share in shares]
    for worker in workers:
        worker.start()
    taken = [done.get() for _ in workers]
    for worker in workers:
        worker.join()
    return Taken(max(rank.wall_s for rank in taken), max(rank.processor_s for rank in taken))


def cache_hits(folder: Path) -> dict[str, Taken]:
    """Return how long it takes to have references of Inception's size again, on a new machine and on the same."""
    os.environ.update(AWS_ACCESS_KEY_ID=ACCESS_KEY, AWS_SECRET_ACCESS_KEY=SECRET_KEY)
    with rclone_server(folder / "s3") as endpoint:
        store, home = connect(endpoint), StoreUri("bucket", "references/data/inception/all")
        features = torch.randn(3000, FEATURES).numpy()
        keep_reference(store, home, folder / "first", main=features, mirrored=features, manifold=None)
        calls = {
            "new_machine": lambda: find_reference(store, home, folder / f"new-{time.monotonic_ns()}"),
            "same_machine": lambda: find_reference(store, home, folder / "first"),
        }
        return best_of(3, calls)


def samplers(device: torch.device, repeats: int) -> dict[str, Taken]:
    """Return how long each sampler takes for some images of the demo's network."""
    config = load_config("demo")
    generator = Generator(build_denoiser(config.network).state_dict(), config.network, config.diffusion, device=device)

    def draw(sampler: str) -> Callable[[], Any]:
        sampling = config.sampling.model_copy(update={"sampler": sampler, "num_steps": SAMPLER_STEPS})
        return lambda: generator.draw(sampling, range(SAMPLED), pass_images=SAMPLED)

    return best_of(repeats, {name: draw(name) for name in SAMPLERS})


def main() -> None:
    """Measure everything and print it."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    options.add_argument("--images", type=int, default=64, help="images on each side of the comparison")
    options.add_argument("--processes", type=int, default=2, help="ranks that share the images")
    options.add_argument("--repeats", type=int, default=2)
    options.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    chosen = options.parse_args()
    device = torch.device(chosen.device)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        weights = write_inception(folder / "inception.pth")
        first, second = draw_images(chosen.images), draw_images(chosen.images).flip(-1)
        values: dict[str, float] = {}
        seconds = best_of(
            chosen.repeats,
            {
                "ours": lambda: values.update(ours=measure_ours(weights, first, second, device)),
                "torch_fidelity": lambda: values.update(torch_fidelity=measure_theirs(weights, first, second, device)),
            },
        )
        runs = [(ranks(weights, first, 1), ranks(weights, first, chosen.processes)) for _ in range(chosen.repeats)]
        one, many = (least(times) for times in zip(*runs, strict=True))
        hits = cache_hits(folder)
        drawing = samplers(device, chosen.repeats)
    total = 2 * chosen.images
    print(
        json.dumps(
            {
                "images": total,
                "image_px": IMAGE_PX,
                "device": chosen.device,
                "threads_per_process": 1,
                "features_per_s": {name: round(total / taken.wall_s, 2) for name, taken in seconds.items()},
                "speed_ratio_to_torch_fidelity": round(seconds["torch_fidelity"].wall_s / seconds["ours"].wall_s, 3),
                "processor_time_ratio_to_torch_fidelity": round(seconds["torch_fidelity"].processor_s / seconds["ours"].processor_s, 3),
                "fid": values,
                "ranks": {
                    "processes": chosen.processes,
                    "speedup": round(one.wall_s / many.wall_s, 2),
                    "speedup_in_processor_time": round(one.processor_s / many.processor_s, 2),
                },
                "reference_cache_hit_s": {name: round(taken.wall_s, 3) for name, taken in hits.items()},
                "sampling_images_per_s": {name: round(SAMPLED / taken.wall_s, 1) for name, taken in drawing.items()},
                "sampling_images_per_processor_s": {name: round(SAMPLED / taken.processor_s, 1) for name, taken in drawing.items()},
                "sampling": {"network": "demo", "image_px": 32, "steps": SAMPLER_STEPS},
            }
        )
    )


if __name__ == "__main__":
    main()
