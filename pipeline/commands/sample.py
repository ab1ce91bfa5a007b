"""`celebdit sample`: generate images from a checkpoint, a run or a registered version, with optional autoguidance."""

import hashlib
import time
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from pydantic import ValidationError

from components.errors import BadInput
from components.runtime.context import describe
from components.runtime.events import Event
from model.config import SamplingConfig
from model.sampler_table import SAMPLERS
from pipeline.commands.guidance import GuidanceRequest, guidance_options
from pipeline.commands.help import example
from pipeline.commands.options import home_option, json_option, print_json, say
from pipeline.session import open_session
from pipeline.view import RunView

if TYPE_CHECKING:
    import numpy as np
    import torch

    from components.weights.find import ResolvedWeights

_MOST_IMAGES = 100_000
_MOST_IN_GRID = 1024


@click.command(epilog=example("celebdit sample models:/celebdit-demo@champion --count 16 --out faces.png"))
@click.argument("source")
@click.option("--count", default=16, show_default=True, type=click.IntRange(1, _MOST_IMAGES), help="Number of images.")
@click.option("--first", default=0, show_default=True, type=click.IntRange(0, 2**32 - 1 - _MOST_IMAGES), help="Index of the first image.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="A .png file for one grid, or a folder for single images.  [default: a grid in the current folder]",
)
@click.option("--sampler", type=click.Choice(list(SAMPLERS)), help="Sampler.  [default: the version's own, else heun]")
@click.option("--steps", "num_steps", type=click.IntRange(1, 4000), help="Number of sampler steps.  [default: the version's own, else 32]")
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), help="Seed; image i depends only on the weights, the seed and i.  [default: 0]")
@click.option("--ema", help="EMA by its sigma_rel, or none for the raw weights.  [default: the widest]")
@guidance_options
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True, help="Device to sample on.")
@click.option("--batch", "batch_images", type=click.IntRange(1, 4096), help="Images per pass.  [default: what fits in memory]")
@home_option
@json_option
def sample(
    source: str,
    count: int,
    first: int,
    out: Path | None,
    sampler: str | None,
    num_steps: int | None,
    seed: int | None,
    ema: str | None,
    guidance_request: GuidanceRequest | None,
    device: str,
    batch_images: int | None,
    home: Path,
    as_json: bool,
) -> None:
    """Generate images from SOURCE and write them as PNG.

    SOURCE is a checkpoint (folder or s3:// location), a run (its key or id as `celebdit run` prints it, or RUN@STEP), or a registered
    version (models:/NAME@champion). The same seed gives the same bytes on the same device.
    """
    from components.weights.find import find_weights, needs_servers
    from model.generator import GuideMismatch

    sources = [source, *([] if guidance_request is None else [guidance_request.source])]
    if not all(name.strip() for name in sources):
        raise BadInput("SOURCE is empty", hint="give a checkpoint, a run or models:/NAME@champion")
    with open_session(home) if any(map(needs_servers, sources)) else nullcontext() as session:
        context = session.context() if session is not None else None
        weights = find_weights(source, ema=ema, context=context)
        guide = None if guidance_request is None else guidance_request.find(weights, context)
    sampling = _sampling(weights.sampling, sampler=sampler, num_steps=num_steps, seed=seed, ema=weights.ema)
    target = out or _default_target(weights, sampling, guidance_request)
    _check_target(target, count)
    generator = weights.generator(_device(device))
    guidance = None if guide is None else guide.guidance(_device(device))

    def on_step(done: int, total: int) -> None:
        view(Event(step="sample", kind="progress", at_s=time.time(), facts={"done": done, "total": total, "text": "steps"}))

    with RunView() as view:
        try:
            images = generator.draw(sampling, range(first, first + count), guidance=guidance, pass_images=batch_images, on_step=on_step)
        except GuideMismatch as error:
            raise BadInput(
                f"--guide: {error}", hint="use weights that were trained at the same image size and with the same noise path"
            ) from error
        except ValueError as error:  # the noise path of these weights does not allow this sampler or step count
            raise BadInput(f"{error}", hint="use fewer --steps or another --sampler") from error
    file_digests = _write(images.permute(0, 2, 3, 1).numpy(), target, first)
    say(f"{count} images of {weights.source}, EMA {weights.ema}, {sampling.sampler}, {sampling.num_steps} steps, seed {sampling.seed}")
    if guide is not None:
        say(f"  {guide.description}")
    say(f"  {target}")
    if as_json:
        print_json(
            {
                "source": weights.source,
                "checkpoint_digest": weights.digest,
                "sampling": sampling.model_dump(mode="json"),
                "guidance": None if guide is None else guide.facts,
                "first": first,
                "count": count,
                "out": str(target),
                "files": file_digests,
            }
        )


def _default_target(weights: "ResolvedWeights", sampling: SamplingConfig, guidance_request: GuidanceRequest | None) -> Path:
    guided = "" if guidance_request is None else f"-guided{guidance_request.weight:g}"
    return Path(f"samples-{weights.digest[:8]}-{sampling.sampler}{sampling.num_steps}{guided}-seed{sampling.seed}.png")


def _sampling(defaults: SamplingConfig | None, *, ema: str, **changes: Any) -> SamplingConfig:
    base = (defaults or SamplingConfig()).model_dump(mode="json")
    try:
        return SamplingConfig(**{**base, **{key: value for key, value in changes.items() if value is not None}, "ema": ema})
    except ValidationError as error:
        raise BadInput(describe(error, section="sampling")) from error


def _check_target(target: Path, count: int) -> None:
    if target.suffix == ".png":
        if count > _MOST_IN_GRID:
            raise BadInput(
                f"--count {count} is too large for one grid, the maximum is {_MOST_IN_GRID}", hint="write to a folder with --out instead"
            )
        if target.is_dir() or not target.absolute().parent.is_dir():
            raise BadInput(
                f"{target} cannot be written", hint=f"{target.absolute().parent} must be a folder, and {target.name} must not be one"
            )
    elif target.exists() and not target.is_dir():
        raise BadInput(f"{target} is a file and does not end in .png", hint="give a .png file for a grid, or a folder for single images")


def _device(name: str) -> "torch.device":
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise BadInput("--device cuda: no CUDA device is available", hint="omit --device, or use --device cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def _write(images: "np.ndarray", target: Path, first: int) -> dict[str, str]:
    """Write one grid or a folder of images, and return each file's sha256."""
    from components.reports.image_grid import grid, png

    if target.suffix == ".png":
        files = {target: png(grid(list(images)))}
    else:
        target.mkdir(parents=True, exist_ok=True)
        files = {target / f"{first + index:06d}.png": png(image) for index, image in enumerate(images)}
    for path, data in files.items():
        partial = path.with_name(f".{path.name}.partial")
        partial.write_bytes(data)
        partial.replace(path)
    return {str(path): hashlib.sha256(data).hexdigest() for path, data in files.items()}
