"""`celebdit sample`: generate images from a checkpoint, a run or a registered version, with optional autoguidance."""

import hashlib
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, fields
from functools import reduce, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from pydantic import ValidationError

from components.errors import BadInput
from components.reports.plural import plural
from components.runtime.events import Event
from components.system.disk import require_writable
from components.system.own_folder import partial_name
from components.validation import describe
from model.config import SamplingConfig
from model.sampler_table import SAMPLERS
from pipeline.commands.commands_in_hints import open_view
from pipeline.commands.guidance import GuidanceRequest, Guide, guidance_options
from pipeline.commands.help import example
from pipeline.commands.options import OutputPath, home_option, json_option, print_json, print_line
from pipeline.commands.students import warn_of_other_steps
from pipeline.session import open_session

if TYPE_CHECKING:
    import numpy as np
    import torch

    from components.weights.find import ResolvedWeights

F = TypeVar("F", bound=Callable[..., Any])
_MOST_IMAGES = 100_000
_MOST_IN_GRID = 1024
_CPU_PASS_IMAGES = 16
_OTHER_FORMATS = frozenset({".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".svg", ".pdf"})
_BATCH_HELP = f"Images per pass.  [default: {_CPU_PASS_IMAGES} on a CPU, else what fits in memory]"


@dataclass(frozen=True)
class ImageRequest:
    """Values of the options that choose the images; None stands for the weights' own sampler, steps and seed."""

    count: int
    first: int
    sampler: str | None
    num_steps: int | None
    seed: int | None
    ema: str | None
    device: str
    batch_images: int | None

    def sampling(self, weights: "ResolvedWeights") -> SamplingConfig:
        """Return the sampling settings of `weights` with the values of the options.

        Raises:
            BadInput: if a setting is out of bounds.
        """
        changes = {"sampler": self.sampler, "num_steps": self.num_steps, "seed": self.seed, "ema": weights.ema}
        base = (weights.sampling or SamplingConfig()).model_dump(mode="json")
        try:
            return SamplingConfig(**{**base, **{key: value for key, value in changes.items() if value is not None}})
        except ValidationError as error:
            raise BadInput(describe(error, section="sampling")) from error


def image_options(function: F) -> F:
    """Add the options of an `ImageRequest`, which the command receives as one `request`."""
    seed_help = "Seed; image i depends only on the weights, the seed and i.  [default: 0]"
    options = [
        click.option("--count", default=16, show_default=True, type=click.IntRange(1, _MOST_IMAGES), help="Number of images."),
        click.option(
            "--first", default=0, show_default=True, type=click.IntRange(0, 2**32 - 1 - _MOST_IMAGES), help="Index of the first image."
        ),
        click.option("--sampler", type=click.Choice(list(SAMPLERS)), help="Sampler.  [default: the version's or student's own, else heun]"),
        click.option(
            "--steps",
            "num_steps",
            type=click.IntRange(1, 4000),
            help="Number of sampler steps.  [default: the version's or student's own, else 32]",
        ),
        click.option("--seed", type=click.IntRange(0, 2**63 - 1), help=seed_help),
        click.option("--ema", help="EMA by its sigma_rel, or none for the raw weights.  [default: the widest]"),
        click.option(
            "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True, help="Device to sample on."
        ),
        click.option(
            "--batch",
            "batch_images",
            type=click.IntRange(1, 4096),
            help=_BATCH_HELP,
        ),
    ]

    @wraps(function)
    def with_request(*arguments: Any, **values: Any) -> Any:
        request = ImageRequest(**{field.name: values.pop(field.name) for field in fields(ImageRequest)})
        return function(*arguments, request=request, **values)

    return reduce(lambda command, option: option(command), reversed(options), with_request)  # type: ignore[return-value]


@click.command(epilog=example("celebdit sample models:/celebdit-demo@champion --count 16 --out faces.png"))
@click.argument("source")
@click.option(
    "--out",
    type=OutputPath(),
    help="A .png file for one grid, or a folder for single images.  [default: a grid in the current folder]",
)
@image_options
@guidance_options
@home_option
@json_option
def sample(
    source: str, out: Path | None, request: ImageRequest, guidance_request: GuidanceRequest | None, home: Path, as_json: bool
) -> None:
    """Generate images from SOURCE and write them as PNG.

    SOURCE is a checkpoint (a folder, an s3:// location, or its key in the store, which MLflow shows as checkpoint.uri), a run (its key or
    id as `celebdit run` prints it, or RUN@STEP), or a registered version (models:/NAME@champion). The same seed gives the same bytes on the
    same device.
    """
    if out is not None:
        _check_target(out, request.count)
    weights, guide = _find_weights(source, request.ema, guidance_request, home)
    sampling = request.sampling(weights)
    if weights.is_student and weights.sampling is not None:
        warn_of_other_steps(weights.sampling, sampling)
    target = out or _default_target(weights, sampling, guidance_request)
    _check_target(target, request.count)
    file_digests = _write(_generate(weights, guide, sampling, request), target, request.first)
    print_line(
        f"{plural(request.count, 'image')} of {weights.source}, EMA {weights.ema}, "
        f"{sampling.sampler}, {plural(sampling.num_steps, 'step')}, seed {sampling.seed}"
    )
    if guide is not None:
        print_line(f"  {guide.description}")
    print_line(f"  {target}")
    if as_json:
        print_json(
            {
                "source": weights.source,
                "checkpoint_digest": weights.digest,
                "sampling": sampling.model_dump(mode="json"),
                "guidance": None if guide is None else guide.facts,
                "first": request.first,
                "count": request.count,
                "out": str(target),
                "files": file_digests,
            }
        )


def _find_weights(
    source: str, ema: str | None, guidance_request: GuidanceRequest | None, home: Path
) -> "tuple[ResolvedWeights, Guide | None]":
    """Look up the weights and their guide; the servers run only while they are needed."""
    from components.weights.find import find_weights, needs_servers

    sources = [source, *([] if guidance_request is None else [guidance_request.source])]
    if not all(name.strip() for name in sources):
        raise BadInput("SOURCE is empty", hint="give a checkpoint, a run or models:/NAME@champion")
    with open_session(home) if any(map(needs_servers, sources)) else nullcontext() as session:
        context = session.context() if session is not None else None
        weights = find_weights(source, ema=ema, context=context)
        return weights, None if guidance_request is None else guidance_request.find(weights, context)


def _generate(weights: "ResolvedWeights", guide: Guide | None, sampling: SamplingConfig, request: ImageRequest) -> "np.ndarray":
    """Return the images as bytes, shape (images, height, width, 3), and show the progress meanwhile."""
    from model.generator import GuideMismatch
    from model.memory import MAX_IMAGES

    device = _device(request.device)
    generator = weights.generator(device)
    guidance = None if guide is None else guide.guidance(device)
    indices = range(request.first, request.first + request.count)

    def on_step(done: int, total: int) -> None:
        view(Event(step="sample", kind="progress", at_s=time.time(), facts={"done": done, "total": total, "text": "steps"}))

    with open_view() as view:
        try:
            # A pass is always of the same size, so that an image does not depend on how many are drawn; a CPU is as fast with a small one.
            limit = _CPU_PASS_IMAGES if device.type == "cpu" else MAX_IMAGES
            images = generator.draw(sampling, indices, guidance=guidance, pass_images=request.batch_images, limit=limit, on_step=on_step)
        except GuideMismatch as error:
            raise BadInput(
                f"--guide: {error}", hint="use weights that were trained at the same image size and with the same noise path"
            ) from error
        except ValueError as error:  # the noise path of these weights does not allow this sampler or step count
            raise BadInput(f"{error}", hint="use fewer --steps or another --sampler") from error
    return images.permute(0, 2, 3, 1).numpy()


def _default_target(weights: "ResolvedWeights", sampling: SamplingConfig, guidance_request: GuidanceRequest | None) -> Path:
    guided = "" if guidance_request is None else f"-guided{guidance_request.weight:g}"
    return Path(f"samples-{weights.digest[:8]}-{sampling.sampler}{sampling.num_steps}{guided}-seed{sampling.seed}.png")


def _is_grid(target: Path) -> bool:
    return target.suffix.lower() == ".png"


def _check_target(target: Path, count: int) -> None:
    if _is_grid(target):
        if count > _MOST_IN_GRID:
            raise BadInput(
                f"--count {count} is too large for one grid, the maximum is {_MOST_IN_GRID}", hint="write to a folder with --out instead"
            )
        if target.is_dir() or not target.absolute().parent.is_dir():
            raise BadInput(
                f"{target} cannot be written", hint=f"{target.absolute().parent} must be a folder, and {target.name} must not be one"
            )
    elif not target.is_dir() and (target.exists() or target.suffix.lower() in _OTHER_FORMATS):
        problem = "is a file and does not end in .png" if target.exists() else "names no PNG, the one format that is written"
        raise BadInput(f"--out {target} {problem}", hint="give a .png file for a grid, or a folder for single images")
    folder = next(folder for folder in (target.absolute(), *target.absolute().parents) if folder.is_dir())
    require_writable(folder, advice="choose another place with --out", room_bytes=0)


def _device(name: str) -> "torch.device":
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise BadInput("--device cuda: no CUDA device is available", hint="omit --device, or use --device cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def _write(images: "np.ndarray", target: Path, first: int) -> dict[str, str]:
    """Write one grid or a folder of images, and return each file's sha256."""
    from components.reports.image_grid import enlarge, grid, png

    if _is_grid(target):
        tiles = [enlarge(image, smooth=False) for image in images] if len(images) > 1 else list(images)
        files = {target: png(grid(tiles))}
    else:
        target.mkdir(parents=True, exist_ok=True)
        files = {target / f"{first + index:06d}.png": png(image) for index, image in enumerate(images)}
    for path, data in files.items():
        partial = partial_name(path)
        partial.write_bytes(data)
        partial.replace(path)
    return {str(path): hashlib.sha256(data).hexdigest() for path, data in files.items()}
