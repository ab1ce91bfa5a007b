"""The metrics of a training that KFP shows on its run page and in its comparison of runs: loss, images per second and steps."""

from components.errors import first_line
from components.manifests import CheckpointManifest
from components.runtime.context import StepContext
from components.tracking.request_limits import limit_requests

_SHOWN = {"train/loss": "train_loss", "perf/images_per_s": "images_per_s"}


def kfp_metrics(manifest: CheckpointManifest, context: StepContext) -> dict[str, float]:
    """Return the last value of each metric; of a training whose run in MLflow cannot be read, the steps alone."""
    metrics = {"steps": float(manifest.step)}
    limit_requests(timeout_s=10, max_retries=1)  # training has ended; an outage of MLflow must not hold it up
    try:
        run = context.tracking.training_run(manifest.run_key)
        if run is not None:
            metrics |= {name: float(run.data.metrics[key]) for key, name in _SHOWN.items() if key in run.data.metrics}
    except Exception as error:  # what is only shown fails no training
        context.events.note(f"KFP shows no loss of this training: {first_line(error)}")
    return metrics
