"""Record an ingest in MLflow: the dataset as the run's input, its licence, counts and report.

Promises: recording it again changes nothing. The dataset is committed before and does not depend on MLflow.
"""

import tempfile
from pathlib import Path

from components.ingest.dataset.publish import REPORT
from components.manifests import DatasetManifest
from components.runtime.context import StepContext
from components.system.work_folders import WorkFolder
from components.tracking.tags import TAG_LICENCE

STEP = "ingest"


def record(manifest: DatasetManifest, context: StepContext) -> str:
    """Log the dataset `manifest` to this pipeline run's ingest run and return that run's id."""
    tracking = context.tracking
    with tracking.mark_running(tracking.step_run(STEP)) as run_id:
        tracking.log_dataset(run_id, manifest, context=STEP)
        tracking.set_tags(
            run_id,
            {
                "dataset.uri": manifest.uri,
                "dataset.source": manifest.source,
                TAG_LICENCE: manifest.licence,
                "dataset.licence_accepted_by": manifest.licence_accepted_by,
            },
        )
        counts = {"images": manifest.num_images, "held_out": manifest.num_held_out, "ignored": manifest.ignored}
        counts |= {f"rejected/{code}": count for code, count in manifest.rejected.items()}
        tracking.log_values(run_id, {f"data/{name}": float(count) for name, count in counts.items()})
        with tempfile.TemporaryDirectory(dir=context.scratch(WorkFolder.REPORTS)) as folder:
            report = Path(folder) / REPORT
            context.store.get_file(context.layout.locate(manifest.uri) / REPORT, report)
            tracking.log_artifact(run_id, report)
    return run_id
