"""Trainings of `gpu_check.py`: the project's own step on random images in a scratch folder, timed, or stopped and continued."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.timing import seconds_per_call, wait_for
from model.checkpoint import CheckpointState, publish, read
from model.compilation import compile_network
from model.config import DistillConfig, Recipe
from model.dataset import PackWriter, open_pack
from model.denoiser import build_denoiser
from model.devices import device_named
from model.distributed import World
from model.flops import forward_flops, passes_per_image
from model.interfaces import Outputs
from model.memory_estimate import training_memory
from model.trainer import Placement, Trainer
from pipeline.config import load_config

_IMAGES = 64
_STEPS_AHEAD = 8


class _NoRecorder:
    """Records nothing."""

    def metrics(self, step: int, values: object) -> None: ...
    def samples(self, step: int, images: object) -> None: ...
    def trace(self, step: int, write: object) -> None: ...
    def progress(self, step: int, total_steps: int, text: str) -> None: ...


class _NoSink:
    """Stores nothing."""

    def ready(self) -> bool:
        return False

    def submit(self, snapshot: Callable[[], CheckpointState]) -> None: ...
    def drain(self) -> None: ...


@dataclass(frozen=True)
class Timed:
    """The speed of a training."""

    image_px: int
    batch_images: int
    first_step_s: float
    """With compilation."""
    step_ms: float
    images_per_s: float
    tflops: float
    mfu: float | None
    peak_memory_gb: float | None
    estimated_memory_gb: float
    """What `celebdit plan` says for the same step."""

    def row(self) -> dict[str, object]:
        return {name: round(value, 4) if isinstance(value, float) else value for name, value in asdict(self).items()}


def recipe_of(preset: str, batch_images: int | None, precision: str, *, compiled: bool) -> Recipe:
    """Return the recipe of a preset in one pass of `batch_images`, without sample grids."""
    config = load_config(preset)
    changes: dict[str, object] = {
        "compile": compiled,
        "precision": precision,
        "sample_every_steps": 10**8,
        "ema_snapshot_every_steps": None,
    }
    changes |= {"microbatch_images": None, "log_every_steps": 10**6, "total_steps": 10**6}
    changes |= {} if batch_images is None else {"batch_images": batch_images}
    training = config.training.model_copy(update=changes)
    return Recipe(
        network=config.network, diffusion=config.diffusion, optimizer=config.optimizer, training=training, sampling=config.sampling
    )


@contextmanager
def trainer_of(
    preset: str,
    batch_images: int | None,
    device: torch.device,
    precision: str,
    *,
    compiled: bool,
    one_graph: bool = False,
    distilled: bool = False,
) -> Iterator[tuple[Trainer, Callable[[], torch.Tensor]]]:
    """Yield a trainer on random images, and the function that trains it one step more; `distilled`: a student of four steps."""
    recipe = recipe_of(preset, batch_images, precision, compiled=compiled)
    if distilled:
        recipe = recipe.model_copy(update={"distill": DistillConfig(teacher="0" * 16, steps=4)})
    teacher = build_denoiser(recipe.network, seed=0).state_dict() if distilled else None
    side = recipe.network.image_px
    with tempfile.TemporaryDirectory() as folder:
        images = np.random.default_rng(0).integers(0, 256, (_IMAGES, side, side, 3), dtype=np.uint8)
        keys = [f"image{index}" for index in range(_IMAGES)]
        with PackWriter(Path(folder), shape=(side, side), keys=keys, dataset_digest="0" * 64) as add:
            for image in images:
                add(image)
        trainer = Trainer(recipe, open_pack(Path(folder)), Placement(World(), device), Outputs(_NoRecorder(), _NoSink()), teacher=teacher)
        trainer.network.train()
        step = trainer.training_step
        if one_graph:
            step._trained.forward = compile_network(trainer.network, by_block=False)
        else:
            step.wrap_network()

        def advance() -> torch.Tensor:
            return trainer._advance()

        yield trainer, advance


def timed_steps(trainer: Trainer, step: Callable[[], object], *, steps: int, warmup: int) -> Timed:
    """Time `steps` steps of a new `trainer` after `warmup` ones."""
    recipe, device = trainer.recipe, trainer.device
    batch_images = recipe.training.batch_images
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    first_s = seconds_per_call(step, device)
    for _ in range(warmup):
        step()
    step_s = seconds_per_call(step, device, calls=steps)
    distilled = recipe.distill is not None
    flops = passes_per_image(distilled=distilled) * forward_flops(recipe.network) * batch_images
    gpu = device_named(torch.cuda.get_device_name(device)) if cuda else None
    memory = training_memory(recipe.network, recipe.training, distilled=distilled)
    return Timed(
        image_px=recipe.network.image_px,
        batch_images=batch_images,
        first_step_s=first_s,
        step_ms=step_s * 1e3,
        images_per_s=batch_images / step_s,
        tflops=flops / step_s / 1e12,
        mfu=None if gpu is None else flops / step_s / gpu.peak_flops(bfloat16=recipe.training.precision == "bfloat16"),
        peak_memory_gb=torch.cuda.max_memory_allocated() / 1e9 if cuda else None,
        estimated_memory_gb=memory.bytes_of(batch_images) / 1e9,
    )


def checkpoint_cost(trainer: Trainer, step: Callable[[], object], *, step_s: float, every_s: float) -> dict[str, float]:
    """Measure what a checkpoint on local disk every `every_s` seconds takes of the training time.

    Training waits for the copy to host memory, and is slower while another thread hashes and writes the files.
    """
    device = trainer.device
    trainer.snapshot()  # allocates the page-locked buffers, once in a run
    copy_s = seconds_per_call(trainer.snapshot, device)
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(1) as pool:
        snapshot, count = trainer.snapshot(), 0
        began_s = time.perf_counter()
        published = pool.submit(publish, snapshot, Path(folder, "checkpoint"))
        while not published.done():
            step()
            count += 1
            if count % _STEPS_AHEAD == 0:  # a loop that never waits would queue thousands of steps
                wait_for(device)
        wait_for(device)
        publish_s = time.perf_counter() - began_s
        published.result()
    lost_s = copy_s + max(0.0, publish_s - count * step_s)
    return {
        "gigabytes": round(trainer.checkpoint_bytes / 1e9, 3),
        "copy_s": round(copy_s, 3),
        "publish_s": round(publish_s, 3),
        "steps_meanwhile": count,
        "share_of_time": round(lost_s / every_s, 4),
        "every_s": every_s,
    }


def training_losses(preset: str, steps: int, *, device: torch.device) -> list[float]:
    """Return the loss of each of the first `steps` steps in float32."""
    with trainer_of(preset, None, device, "float32", compiled=False) as (_, step):
        return [float(step()) for _ in range(steps)]


def resumed_equals(preset: str, batch: int, device: str, precision: str, *, compiled: bool, deterministic: bool) -> bool:
    """Return whether six steps give the weights of three steps, a restart in a new process and three more, bit for bit.

    The new process has an empty folder of compiled kernels, so that another choice of kernels would show.
    """
    with tempfile.TemporaryDirectory() as folder:

        def run(out: str, source: str | None) -> None:
            job = {"preset": preset, "batch": batch, "device": device, "precision": precision, "compiled": compiled}
            job |= {"deterministic": deterministic, "out": f"{folder}/{out}", "source": source and f"{folder}/{source}"}
            caches = {"TORCHINDUCTOR_CACHE_DIR": f"{folder}/cache-{out}", "TRITON_CACHE_DIR": f"{folder}/cache-{out}/triton"}
            environment = {**os.environ, **caches, "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
            subprocess.run([sys.executable, "-m", "benchmarks.gpu_training", json.dumps(job)], check=True, env=environment)

        run("whole", None)
        run("continued", "whole/step-3")
        states = [_read(Path(folder, name, "step-6")).tensors for name in ("whole", "continued")]
        return all(torch.equal(tensor, states[1][group][name]) for group, tensors in states[0].items() for name, tensor in tensors.items())


def _read(folder: Path) -> CheckpointState:
    return read(next(path for path in sorted(folder.iterdir()) if path.is_dir()))


def _run_job(job: dict[str, object]) -> None:
    """Train to step 6, from a stored state if there is one, and store the states of steps 3 and 6."""
    torch.use_deterministic_algorithms(bool(job["deterministic"]))
    device, batch = torch.device(str(job["device"])), job["batch"]
    assert isinstance(batch, int)
    with trainer_of(str(job["preset"]), batch, device, str(job["precision"]), compiled=bool(job["compiled"])) as (trainer, step):
        if job["source"] is not None:
            trainer.restore(_read(Path(str(job["source"]))))
        while trainer.step < 6:
            step()
            if trainer.step % 3 == 0:
                publish(trainer.snapshot(), Path(str(job["out"]), f"step-{trainer.step}"))


if __name__ == "__main__":
    _run_job(json.loads(sys.argv[1]))
