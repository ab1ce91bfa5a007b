"""The page with a training's last samples for KFP's run page: one grid, small enough to be opened at once.

Reads the grid from the training's run in MLflow, where the ranks logged it. Nothing here fails a training that has ended.
"""

import io

from components.errors import first_line
from components.manifests import CheckpointManifest
from components.reports.html import image_source, render
from components.reports.image_grid import SAMPLE_GRID_KEY
from components.runtime.context import StepContext
from components.tracking.image_names import step_of_image
from components.tracking.request_limits import limit_requests

_MAX_SIDE_PX = 1024


def samples_page(manifest: CheckpointManifest, context: StepContext) -> str:
    """Return a page that is complete in itself; without MLflow, or without samples, it says so."""
    limit_requests(timeout_s=10, max_retries=1)  # training has ended; an outage of MLflow must not hold it up
    grid, step = None, 0
    try:
        last = _last_grid(manifest.run_key, context)
        if last is not None:
            step, png = last
            grid = image_source(_small_jpeg(png), "jpeg")
    except Exception as error:  # what is only shown fails no training
        context.events.note(f"KFP shows no samples of this training: {first_line(error)}")
    return render("training.html", title=f"Training {manifest.run_key}, step {manifest.step}", grid=grid, step=step)


def _last_grid(run_key: str, context: StepContext) -> tuple[int, bytes] | None:
    """Return the newest grid of samples that the training logged, and its step."""
    run = context.tracking.training_run(run_key)
    if run is None:
        return None
    run_id = str(run.info.run_id)
    grids = [(step, path) for path in context.tracking.image_paths(run_id) if (step := step_of_image(path, SAMPLE_GRID_KEY)) is not None]
    if not grids:
        return None
    step, path = max(grids)
    return step, context.tracking.read_artifact(run_id, path)


def _small_jpeg(png: bytes) -> bytes:
    from PIL import Image  # noqa: PLC0415

    image = Image.open(io.BytesIO(png), formats=("PNG",)).convert("RGB")
    image.thumbnail((_MAX_SIDE_PX, _MAX_SIDE_PX))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()
