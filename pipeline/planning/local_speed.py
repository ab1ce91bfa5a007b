"""How fast this machine's CPU trains and samples, measured with a few real steps on random images.

Promises: takes seconds, writes nothing but a temporary folder, and is None for a network that would take too long. It is measured in a
process that keeps memory as a rank does (`components/system/heap.py`), which that process learns when it starts. It ends with this one.
"""

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from components.errors import Failure, TemporaryFailure, error_for_exit_code
from components.system.child_environment import child_environment
from components.system.failures import os_failure
from components.system.heap import HEAP
from components.system.process import die_with_parent
from components.system.python_process import python_command
from components.system.scratch import temporary_folder
from model.checkpoint import CheckpointState
from model.config import Recipe
from model.dataset import PackWriter, open_pack
from model.denoiser import build_denoiser
from model.distributed import World
from model.flops import forward_flops, passes_per_image
from model.interfaces import Outputs
from model.sampler_table import SAMPLERS
from model.trainer import Placement, Trainer

_MOST_FLOPS = 3e11
"""Of one step: some seconds on a core."""
_KILLED_HINT = "the system does so if memory runs out: stop other programs, or choose a smaller training.batch_images"
_WARM_STEPS, _TIMED_STEPS = 2, 6
_SAMPLES = 16
_IMAGES = 16


@dataclass(frozen=True)
class LocalSpeed:
    """Seconds on one process of this machine, alone on its cores."""

    step_s: float | None
    """Of one optimiser step on the images of one process; None if it was not measured."""
    call_s: float
    """Of one network call for one image while sampling."""


def measure_cpu(recipe: Recipe, *, images_per_rank: int, threads: int, with_steps: bool) -> LocalSpeed | None:
    """Measure how a process with `threads` threads samples, and with `with_steps` how it trains on `images_per_rank` images a step.

    Raises:
        TemporaryFailure: if the disk of the temporary folder is full, or the process was killed. BadInput: if the folder may not be used.
    """
    passes = passes_per_image(distilled=recipe.distill is not None)
    if passes * forward_flops(recipe.network) * images_per_rank > _MOST_FLOPS:
        return None
    request = {"recipe": recipe.model_dump(mode="json"), "images_per_rank": images_per_rank, "threads": threads, "with_steps": with_steps}
    command = python_command("pipeline.planning.local_speed")
    environment = {**HEAP, **child_environment("measurement")}
    with temporary_folder() as folder:  # of this process, which outlives a measurement that is killed
        done = subprocess.run(
            command,
            input=json.dumps(request),
            capture_output=True,
            text=True,
            env=environment,
            cwd=folder,
            preexec_fn=die_with_parent,  # the only way to set a death signal; it touches no lock
            check=False,
        )
    if done.returncode == -signal.SIGKILL:
        raise TemporaryFailure("the measurement of this machine's speed was ended by SIGKILL", hint=_KILLED_HINT)
    if done.returncode != 0:
        raise RuntimeError(f"the speed of this machine could not be measured: exit code {done.returncode}\n{done.stderr}")
    answer = json.loads(done.stdout)
    if failure := answer.get("failure"):
        raise error_for_exit_code(failure["exit_code"], failure["message"], hint=failure["hint"])
    return LocalSpeed(**answer)


def measure_here(recipe: Recipe, *, images_per_rank: int, threads: int, with_steps: bool, parent: Path | None = None) -> LocalSpeed:
    """Measure as `measure_cpu` does, in this process, whatever it takes, with a folder in `parent` or where the system has them."""
    steps = _WARM_STEPS + _TIMED_STEPS
    training = recipe.training.model_copy(
        update={"batch_images": images_per_rank, "total_steps": steps + 1, "log_every_steps": 10**6, "sample_every_steps": 10**6}
    )
    sampling = recipe.sampling.model_copy(update={"num_steps": 2})
    torch.set_num_threads(threads)
    with TemporaryDirectory(prefix="celebdit-plan-", dir=parent) as folder:
        trainer = trainer_on_noise(recipe.model_copy(update={"training": training, "sampling": sampling}), Path(folder))
        finished_s: list[float] = []
        if with_steps:
            trainer.run(on_step=lambda step, loss: finished_s.append(time.perf_counter()), stop_requested=lambda: len(finished_s) >= steps)
        else:
            trainer.draw(torch.arange(_SAMPLES))  # else the first use of each kernel would be measured
        started_s = time.perf_counter()
        trainer.draw(torch.arange(_SAMPLES))
        drawn_s = time.perf_counter() - started_s
    durations = [later - earlier for earlier, later in zip(finished_s[_WARM_STEPS - 1 :], finished_s[_WARM_STEPS:], strict=False)]
    calls = _SAMPLES * SAMPLERS[sampling.sampler].calls(sampling.num_steps)
    return LocalSpeed(step_s=statistics.median(durations) if durations else None, call_s=drawn_s / calls)


def processes_at_once(processes: int, threads: int) -> float:
    """Return how many of the processes this machine's cores run at full speed."""
    return min(processes, max(1.0, (os.cpu_count() or 1) / threads))


def trainer_on_noise(recipe: Recipe, folder: Path) -> Trainer:
    """Return one process that trains `recipe` on random images, which are kept in `folder`, and records and stores nothing."""
    size = recipe.network.image_px
    noise = np.random.default_rng(0).integers(0, 256, (_IMAGES, size, size, 3), dtype=np.uint8)
    keys = [f"{index:064x}" for index in range(_IMAGES)]
    with PackWriter(folder / "pack", shape=(size, size), keys=keys, dataset_digest="0" * 64) as add:
        for image in noise:
            add(image)
    nothing = _Nothing()
    # The weights of a teacher do not change the time of a step.
    teacher = None if recipe.distill is None else build_denoiser(recipe.network).state_dict()
    placement = Placement(World(), torch.device("cpu"))
    return Trainer(recipe, open_pack(folder / "pack"), placement, Outputs(nothing, nothing), teacher=teacher)


class _Nothing:
    """Records and stores nothing."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None: ...
    def samples(self, step: int, images: torch.Tensor) -> None: ...
    def trace(self, step: int, write: Callable[[Path], None]) -> None: ...
    def progress(self, step: int, total_steps: int, text: str) -> None: ...
    def ready(self) -> bool:
        return False

    def submit(self, snapshot: Callable[[], CheckpointState]) -> None: ...
    def drain(self) -> None: ...


def main() -> None:
    """Measure what the request on stdin asks for, and print the speed, or what the system refuses."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # libraries print there too, as MKL does with MKL_VERBOSE=1
    request = json.load(sys.stdin)
    try:
        answer = asdict(measure_here(Recipe.model_validate_json(json.dumps(request.pop("recipe"))), **request, parent=Path.cwd()))
    except OSError as error:
        if (failure := os_failure(error)) is None:
            raise
        answer = {"failure": asdict(Failure.of(failure))}
    with answers:
        json.dump(answer, answers)


if __name__ == "__main__":
    main()
