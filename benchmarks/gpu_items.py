"""The items of `gpu_check.py`, in order of value: training with profile and checkpoints, noise, samples, resume, sizes, students, peers."""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from benchmarks.gpu_blocks import milliseconds_of_blocks
from benchmarks.gpu_kernels import milliseconds_of_kernels
from benchmarks.gpu_profile import profile_steps
from benchmarks.gpu_training import Timed, checkpoint_cost, resumed_equals, timed_steps, trainer_of, training_losses
from benchmarks.timing import seconds_per_call
from model import rng
from model.denoiser import build_denoiser
from model.diffusion import build_diffusion
from model.generator import Generator
from model.noised_batch import BatchNoise, step_tensor
from pipeline.config import load_config

_CHECKPOINT_EVERY_S = 30.0
_MOST_CHECKPOINT_TIME = 0.02
_MOST_PEER_S = 240
_MOST_RESAMPLED_DIFFERENCE = 0.01
"""Of images in [-1, 1]: random pixels, whose neighbours differ by 2, at positions that are rounded."""
_PEER_BATCH = 32
"""Diffusers' U-Net at 256 pixels has memory for no more than 64 images on 80 GB."""


@dataclass(frozen=True)
class Size:
    """How much is measured, and where."""

    presets: tuple[str, ...]
    """The first one is measured most."""
    batch: Mapping[str, int]
    steps: int
    warmup: int
    sample_images: tuple[int, ...]
    compiled: bool
    device: str
    precision: str


@dataclass(frozen=True)
class Item:
    """One measurement: its name, about how long it takes on a GPU, and its function."""

    name: str
    least_s: float
    measure: Callable[[Size], dict[str, Any]]


def _speed(size: Size, preset: str, *, compiled: bool, one_graph: bool = False, distilled: bool = False) -> Timed:
    options = {"compiled": compiled, "one_graph": one_graph, "distilled": distilled}
    with trainer_of(preset, size.batch[preset], torch.device(size.device), size.precision, **options) as (trainer, step):
        return timed_steps(trainer, step, steps=size.steps, warmup=size.warmup)


def training(size: Size) -> dict[str, Any]:
    """Measure the first preset as it trains, compiled block by block: speed, what the device does in a step, and what checkpoints cost."""
    preset, device = size.presets[0], torch.device(size.device)
    with trainer_of(preset, size.batch[preset], device, size.precision, compiled=size.compiled) as (trainer, step):
        timed = timed_steps(trainer, step, steps=size.steps, warmup=size.warmup)
        profile = profile_steps(step, device, step_s=timed.step_ms / 1e3)
        checkpoints = checkpoint_cost(trainer, step, step_s=timed.step_ms / 1e3, every_s=_CHECKPOINT_EVERY_S)
    passed = size.device != "cuda" or (bool(profile["passed"]) and checkpoints["share_of_time"] < _MOST_CHECKPOINT_TIME)
    return {"speed": timed.row(), "profile": profile, "checkpoints": checkpoints, "passed": passed}


def blocks(size: Size) -> dict[str, Any]:
    """Return the milliseconds of forward and backward pass of blocks of the first preset, with custom kernels and with Inductor's."""
    preset = size.presets[0]
    network, batch = load_config(preset).network, size.batch[preset]
    times = {
        kernels: milliseconds_of_blocks(network, batch, torch.device(size.device), compiled=size.compiled, own_kernels=kernels == "own")
        for kernels in ("own", "inductor")
    }
    return {"milliseconds": times, "images": batch}


def kernels(size: Size) -> dict[str, Any]:
    """Return the milliseconds of each custom kernel, with other block sizes too."""
    preset = size.presets[0]
    return {"milliseconds": milliseconds_of_kernels(load_config(preset).network, size.batch[preset], torch.device(size.device))}


def one_graph(size: Size) -> dict[str, Any]:
    """Measure the first preset compiled as one graph, for comparison; compiling it takes minutes."""
    if not size.compiled:
        return {"left_out": "nothing is compiled at toy size"}
    return _speed(size, size.presets[0], compiled=True, one_graph=True).row()


def noise(size: Size) -> dict[str, Any]:
    """Compare noise, flips, augmentation and mixing as plain and as compiled functions: words, numbers and time."""
    device, config = torch.device(size.device), load_config(size.presets[0])
    count, side = size.batch[size.presets[0]], config.network.image_px
    plain = BatchNoise(build_diffusion(config.diffusion), 0, True)
    augmented = replace(plain, augmentation=0.15)
    backend = "inductor" if size.compiled else "aot_eager"
    compiled, compiled_augmented = (function.compile(backend=backend) for function in (plain, augmented))
    images = torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, device=device)
    ids = torch.arange(count, device=device)
    first, second = (function(images, ids, step_tensor(3, device)) for function in (plain, compiled))
    difference = (first.noise - second.noise).abs().max().item()
    moved, moved_compiled = (function(images, ids, step_tensor(3, device)).x for function in (augmented, compiled_augmented))
    of_augmented = (moved - moved_compiled).abs().max().item()

    def words(step: torch.Tensor) -> torch.Tensor:
        return rng.words(0, rng.Stream.NOISE, step, ids, 64)

    traced = torch.compile(words, fullgraph=True, dynamic=False, backend=backend)
    equal = torch.equal(words(step_tensor(9, device)), traced(step_tensor(9, device)))
    times = {
        name: _milliseconds(lambda f=f: f(images, ids, step_tensor(4, device)), device)
        for name, f in (("plain", plain), ("compiled", compiled), ("augmented", augmented), ("compiled_augmented", compiled_augmented))
    }
    return {
        "words_equal": equal,
        "largest_difference": difference,
        "largest_difference_augmented": of_augmented,
        "milliseconds": times,
        "passed": equal and difference < 1e-6 and of_augmented < _MOST_RESAMPLED_DIFFERENCE,
    }


def sampling(size: Size) -> dict[str, Any]:
    """Return images per second of samplers: plain and compiled (both with bfloat16 weights), for each batch."""
    device, config = torch.device(size.device), load_config(size.presets[0])
    weights = {name: tensor.clone() for name, tensor in build_denoiser(config.network, seed=0).state_dict().items()}
    samplers = {"dpmpp_2m_25": ("dpmpp_2m", 25), "heun_32": ("heun", 32)} if size.device == "cuda" else {"dpmpp_2m_3": ("dpmpp_2m", 3)}
    rates: dict[str, float] = {}
    for compiled in (False, True) if size.compiled else (False,):
        generator = Generator(weights, config.network, config.diffusion, device=device, precision=_precision(size), compiled=compiled)
        # Each size of a pass is compiled on its own; one image at a time is what `serve` draws, which compiles nothing.
        for images in size.sample_images[-1:] if compiled else size.sample_images:
            for name in list(samplers) if compiled else list(samplers)[:1]:
                sampler, steps = samplers[name]
                settings = config.sampling.model_copy(update={"sampler": sampler, "num_steps": steps})
                generator.draw(settings.model_copy(update={"num_steps": 2}), range(images), pass_images=images)
                draw_s = seconds_per_call(partial(generator.draw, settings, range(images), pass_images=images), device)
                rates[f"{'compiled' if compiled else 'eager'}/{name}/batch_{images}"] = round(images / draw_s, 3)
    return {"images_per_s": rates}


def resume(size: Size) -> dict[str, Any]:
    """Compare six steps with three, a restart in a new process and three more: bit for bit, with and without `compile`.

    On the small network of `demo`: a large one would be compiled for most of the time that there is.
    """
    preset, batch = ("demo", 32) if size.device == "cuda" else (size.presets[0], 4)
    cases = [(False, True), (True, True), (True, False)] if size.compiled else [(False, True)]

    def case(compiled: bool, deterministic: bool) -> bool:
        return resumed_equals(preset, batch, size.device, size.precision, compiled=compiled, deterministic=deterministic)

    with ThreadPoolExecutor(len(cases)) as pool:  # each waits for its processes
        equal = pool.map(case, *zip(*cases, strict=True))
    results = {f"compile={case[0]} deterministic={case[1]}": value for case, value in zip(cases, equal, strict=True)}
    return {"bitwise": results, "passed": all(equal for name, equal in results.items() if name.endswith("deterministic=True"))}


def other_sizes(size: Size) -> dict[str, Any]:
    """Return the speed of the other presets."""
    return {preset: _speed(size, preset, compiled=size.compiled).row() for preset in size.presets[1:]}


def output_layer(size: Size) -> dict[str, Any]:
    """Compare the output convolution with TF32 and with full float32 products: time and largest difference, relative to the output."""
    device, config = torch.device(size.device), load_config(size.presets[0])
    network, side = config.network, config.network.image_px // config.network.stem_px
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(network.channels[0], 3 * network.stem_px**2, 3, padding=1).to(device, memory_format=torch.channels_last)
    x = torch.randn(size.batch[size.presets[0]], network.channels[0], side, side, device=device).contiguous(
        memory_format=torch.channels_last
    )
    outputs, times = [], {}
    for name, allowed in (("tf32", True), ("ieee", False)):
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=allowed), torch.inference_mode():
            outputs.append(layer(x))
            times[name] = _milliseconds(lambda: layer(x), device)
    difference = ((outputs[0] - outputs[1]).abs().max() / outputs[1].abs().max()).item()
    return {"milliseconds": times, "relative_difference": difference}


def small_run(size: Size) -> dict[str, Any]:
    """Compare the loss of a small preset on the device with that on the CPU, step by step."""
    preset, steps = ("demo", 60) if size.device == "cuda" else ("smoke", 3)
    curves = [training_losses(preset, steps, device=torch.device(name)) for name in ("cpu", size.device)]
    worst = max(abs(one - other) / one for one, other in zip(*curves, strict=True))
    return {"steps": steps, "first": curves[1][0], "last": curves[1][-1], "largest_relative_difference": worst, "passed": worst < 0.05}


def eager(size: Size) -> dict[str, Any]:
    """Return the speed of the first preset without compilation, at half of the batch, which it has memory for."""
    preset = size.presets[0]
    smaller = replace(size, batch={preset: max(1, size.batch[preset] // 2)})
    return {"eager": _speed(smaller, preset, compiled=False).row()}


def distillation(size: Size) -> dict[str, Any]:
    """Compare a step of a student of the first preset with one of its teacher, at half of the batch: a student takes more memory."""
    preset = size.presets[0]
    smaller = replace(size, batch={preset: max(1, size.batch[preset] // 2)})
    teacher, student = (_speed(smaller, preset, compiled=size.compiled, distilled=distilled) for distilled in (False, True))
    return {"teacher": teacher.row(), "student": student.row(), "student_over_teacher": round(student.step_ms / teacher.step_ms, 3)}


def peers(size: Size) -> dict[str, Any]:
    """Return the speed of diffusers' networks beside ours in the same step, if they are installed (`make bench-tools`)."""
    command = [sys.executable, "-m", "benchmarks.train_step", "--preset", size.presets[0], "--device", size.device, "--json"]
    command += ["--steps", str(size.steps), "--warmup", str(size.warmup), "--batch", str(size.batch[size.presets[0]])]
    if size.device != "cuda":
        return {"left_out": "the peers of a GPU's size do not fit a toy"}
    command += ["--peer-batch", str(_PEER_BATCH), "--compile"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_MOST_PEER_S)
    return {"report": json.loads(done.stdout)} if done.returncode == 0 else {"left_out": done.stderr[-500:]}


def _precision(size: Size) -> Any:
    return size.precision


def _milliseconds(call: Callable[[], object], device: torch.device) -> float:
    call()
    return round(seconds_per_call(call, device, calls=5) * 1e3, 4)


ITEMS = (
    Item("training", 85, training),
    Item("blocks", 65, blocks),
    Item("noise", 10, noise),
    Item("sampling", 45, sampling),
    Item("other_sizes", 70, other_sizes),
    Item("resume", 80, resume),
    Item("peers", 100, peers),
    Item("kernels", 60, kernels),
    Item("output_layer", 5, output_layer),
    Item("eager", 20, eager),
    Item("small_run", 15, small_run),
    Item("distillation", 120, distillation),
    Item("one_graph", 240, one_graph),
)
