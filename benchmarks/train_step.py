"""How fast one training step is, beside diffusers' networks in the same run: `python -m benchmarks.train_step --preset demo --json`.

Promises: every contender does the same step (noise, network, loss, backward, clipping, AdamW, averages) on the same images at the same
precision, in a process of its own, so that peak memory is its own; numbers of one run may be compared with each other. Reading data is not
part of it. One JSON object on stdout with `--json`, a table on stderr always.
"""

import argparse
import gc
import json
import multiprocessing
import os
import platform
import resource
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn

from benchmarks.peers import PEERS, diffusers_version
from benchmarks.timing import seconds_per_call
from components.errors import BadInput, CelebditError
from model.compilation import INDUCTOR_OPTIONS, NETWORK_OPTIONS, compile_network
from model.config import NetworkConfig
from model.denoiser import Denoiser, build_denoiser, num_parameters
from model.devices import device_named
from model.diffusion import Diffusion, build_diffusion
from model.ema_profiles import AveragedWeights, profiles_of
from model.flops import flops_of
from model.noised_batch import BatchNoise, step_tensor
from model.optim import build_optimizer, clip_gradients, guarded_step
from pipeline.config import RunConfig, load_config

OURS = "celebdit"
_FORWARD_AND_BACKWARD = 3
"""Times the forward pass."""


@dataclass(frozen=True)
class Setting:
    """What all contenders of one run share."""

    preset: str
    device: str
    precision: str
    compile: bool
    batch_images: int
    steps: int
    warmup_steps: int


@dataclass(frozen=True)
class Result:
    """One contender's numbers."""

    preset: str
    name: str
    parameters_m: float
    train_gflop_per_image: float
    batch_images: int
    images_per_s: float
    step_ms: float
    images_per_cpu_s: float
    tflops: float
    mfu: float | None
    peak_memory_gb: float


class TrainStep:
    """One training step as `model/trainer.py` does it, for any network of (images, timesteps)."""

    def __init__(self, network: nn.Module, config: RunConfig, diffusion: Diffusion, setting: Setting) -> None:
        self._config, self._diffusion, self._setting = config, diffusion, setting
        self._parameters = list(network.parameters())
        self._optimizer = build_optimizer(network, config.optimizer)
        self._averages = [AveragedWeights(profile, self._parameters) for profile in profiles_of(config.training)]
        self._forward = _compile(network) if setting.compile else network
        noise = BatchNoise(diffusion, config.training.seed, horizontal_flip=False)
        on_cuda = setting.device == "cuda"
        self._add_noise = noise.compile(options=dict(INDUCTOR_OPTIONS)) if setting.compile and on_cuda else noise
        self._step = 0

    def __call__(self, images: Tensor) -> None:
        self._step += 1
        device = images.device
        ids = torch.arange(len(images), device=device)
        batch = self._add_noise(images, ids, step_tensor(self._step, device))
        self._optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=self._setting.precision == "bfloat16"):
            self._diffusion.losses(self._forward(*batch.inputs), batch.x, batch.noise, batch.t).mean().backward()
        norm = clip_gradients(self._parameters, self._config.optimizer.clip_norm)
        guarded_step(self._optimizer, (~torch.isfinite(norm)).float())
        for average in self._averages:
            average.update(self._parameters, self._step)


def _compile(network: nn.Module) -> nn.Module:
    """Compile ours as it trains, and a peer with the same options; its graph may break."""
    if isinstance(network, Denoiser):
        return compile_network(network, by_block=True)
    return cast(nn.Module, torch.compile(network, dynamic=False, options=dict(NETWORK_OPTIONS)))


def build(name: str, network: NetworkConfig) -> nn.Module:
    """Return the contender `name` for the shape of `network`."""
    return build_denoiser(network, seed=0) if name == OURS else PEERS[name](network)


def train_gflop(name: str, network: NetworkConfig) -> float:
    """Return the work of one forward and backward pass on one image, counted on tensors without memory."""
    with torch.device("meta"):
        return _FORWARD_AND_BACKWARD * flops_of(build(name, network), network.image_px) / 1e9


def measure(name: str, setting: Setting) -> Result:
    """Train for a few steps and return the numbers; run it in a process of its own."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    config, device = load_config(setting.preset), torch.device(setting.device)
    gflop = train_gflop(name, config.network)
    gc.collect()
    before_gb = _memory_gb(device)
    torch.manual_seed(0)
    network = build(name, config.network).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    step = TrainStep(network, config, build_diffusion(config.diffusion), setting)
    side = config.network.image_px
    images = torch.randint(0, 256, (setting.batch_images, 3, side, side), dtype=torch.uint8, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    for _ in range(setting.warmup_steps):
        step(images)
    cpu_began = time.process_time()
    walls = [seconds_per_call(lambda: step(images), device) for _ in range(setting.steps)]
    cpu_s = (time.process_time() - cpu_began) / setting.steps
    step_s = statistics.median(walls)
    tflops = gflop * setting.batch_images / step_s / 1e3
    return Result(
        preset=setting.preset,
        name=name,
        parameters_m=round(num_parameters(network) / 1e6, 2),
        train_gflop_per_image=round(gflop, 3),
        batch_images=setting.batch_images,
        images_per_s=round(setting.batch_images / step_s, 3),
        step_ms=round(step_s * 1e3, 2),
        images_per_cpu_s=round(setting.batch_images / cpu_s, 3),
        tflops=round(tflops, 4),
        mfu=_mfu(tflops, device, setting.precision),
        peak_memory_gb=round(_memory_gb(device) - before_gb, 3),
    )


def _memory_gb(device: torch.device) -> float:
    """Return the most memory in use so far: of the device on CUDA, of this process elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def _mfu(tflops: float, device: torch.device, precision: str) -> float | None:
    gpu = device_named(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    peak = None if gpu is None else gpu.peak_flops(bfloat16=precision == "bfloat16")
    return None if peak is None else round(tflops * 1e12 / peak, 4)


def main() -> None:
    """Measure all contenders and print."""
    try:
        arguments = _arguments()
        settings = [_setting(preset, arguments) for preset in arguments.preset]
        names = [OURS, *([] if arguments.no_peers or diffusers_version() is None else PEERS)]
        if not arguments.no_peers and diffusers_version() is None:
            print("peers are left out: diffusers is not installed (make bench-tools)", file=sys.stderr)
        sizes = {name: {} if name == OURS or arguments.peer_batch is None else {"batch_images": arguments.peer_batch} for name in names}
        results = [_in_own_process(name, replace(setting, **sizes[name])) for setting in settings for name in names]
    except CelebditError as error:
        print(f"benchmark: {error.message}" + (f"\n  {error.hint}" if error.hint else ""), file=sys.stderr)
        raise SystemExit(error.exit_code) from error
    _table(results)
    if arguments.json:
        print(json.dumps(_report(results, settings), indent=2))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train_step", description="Measure one training step beside its peers.")
    parser.add_argument("--preset", action="append", help="preset to measure; can be given several times (default: demo)")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--batch", type=int, help="images per step (default: 8 on a CPU, the preset's share of a pass on CUDA)")
    parser.add_argument("--peer-batch", type=int, help="images per step of the peers (default: as many)")
    parser.add_argument("--steps", type=int, default=5, help="timed steps (default: 5)")
    parser.add_argument("--warmup", type=int, default=2, help="steps before them (default: 2)")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], help="default: bfloat16 on CUDA, else float32")
    parser.add_argument("--compile", action="store_true", help="torch.compile every contender")
    parser.add_argument("--no-peers", action="store_true", help="measure our own network only")
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    arguments = parser.parse_args()
    arguments.preset = arguments.preset or ["demo"]
    for name in ("batch", "peer_batch", "steps", "warmup"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise BadInput(f"--{name.replace('_', '-')} {value} must be at least 1")
    return arguments


def _setting(preset: str, arguments: argparse.Namespace) -> Setting:
    training = load_config(preset).training
    available = torch.cuda.is_available()
    device = ("cuda" if available else "cpu") if arguments.device == "auto" else arguments.device
    if device == "cuda" and not available:
        raise BadInput("--device cuda: there is no CUDA device here", hint="use --device cpu")
    share = training.microbatch_images or training.batch_images
    return Setting(
        preset=preset,
        device=device,
        precision=arguments.precision or ("bfloat16" if device == "cuda" else "float32"),
        compile=arguments.compile,
        batch_images=arguments.batch or (share if device == "cuda" else 8),
        steps=arguments.steps,
        warmup_steps=arguments.warmup,
    )


def _in_own_process(name: str, setting: Setting) -> Result:
    print(f"{setting.preset}: {name} ...", file=sys.stderr, flush=True)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, name, setting).result()


def _report(results: list[Result], settings: list[Setting]) -> dict[str, object]:
    cuda = settings[0].device == "cuda"
    return {
        "benchmark": "train_step",
        "command": "python -m benchmarks.train_step " + " ".join(sys.argv[1:]),
        "device": torch.cuda.get_device_name() if cuda else f"{platform.machine()} CPU, {os.environ.get('OMP_NUM_THREADS', '1')} thread(s)",
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "diffusers": diffusers_version()},
        "settings": [asdict(setting) for setting in settings],
        "results": [{**asdict(result), "speed_over_ours": _ratio(result, results)} for result in results],
    }


def _ratio(result: Result, results: list[Result]) -> float:
    ours = next(other for other in results if other.preset == result.preset and other.name == OURS)
    return round(result.images_per_s / ours.images_per_s, 4)


def _table(results: list[Result]) -> None:
    heads = ("param M", "GFLOP/img", "images/s", "TFLOP/s", "MFU", "memory GB", "speed")
    print(f"{'preset':<15} {'network':<32}" + "".join(f"{head:>11}" for head in heads), file=sys.stderr)
    for r in results:
        mfu = "-" if r.mfu is None else f"{r.mfu:.1%}"
        cells = (f"{r.parameters_m:.1f}", f"{r.train_gflop_per_image:.2f}", f"{r.images_per_s:.2f}", f"{r.tflops:.3f}", mfu)
        cells = (*cells, f"{r.peak_memory_gb:.2f}", f"{_ratio(r, results):.2f}x")
        print(f"{r.preset:<15} {r.name:<32}" + "".join(f"{cell:>11}" for cell in cells), file=sys.stderr)


if __name__ == "__main__":
    main()
