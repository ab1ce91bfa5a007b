"""MLflow tracking client: one run per pipeline run, one child per step, with their parameters, metrics, images and artifacts.

Promises: runs are found by tags (pipeline run, run key), never by a remembered id, so that any attempt on any machine continues the same
run; a run that this process opened never stays RUNNING when the process ends; every call is bounded in time. The model registry has its own
client, `components/registry/client.py`; metrics of a training are written to `components/tracking/journal.py` first.
"""

import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException

from components.errors import Failure, Interrupted, Preempted, shorten
from components.manifests import DatasetManifest
from components.tracking.connection import MlflowConnection
from components.tracking.database_conflicts import write_despite_conflicts
from components.tracking.image_names import is_image_logged
from components.tracking.metric_points import Point
from components.tracking.mlflow_errors import translate_mlflow_errors
from components.tracking.tags import TAG_DATASET, TAG_EXPERIMENT, TAG_KIND, TAG_RUN, TAG_RUN_KEY, TAG_STEP
from components.tracking.ui_pages import run_page, runs_page

__all__ = ["Run", "Tracking"]

PARENT = "mlflow.parentRunId"
_DIGEST_CHARACTERS = 32
_MAX_PARAMS = 40
_BATCH = 1000


class Tracking(MlflowConnection):
    """MLflow as seen from one pipeline run."""

    def pipeline_run(self) -> Run:
        """Return the MLflow run of this pipeline run: the one that KFP's MLflow plugin opened, or ours, created if it does not exist."""
        with self.translate_errors():
            run = self._run_of_kfp_plugin() or self.find_run({TAG_RUN: self.settings.pipeline_run_id, TAG_KIND: "pipeline"})
            if run is not None:
                return run
            name, tags = self.settings.pipeline_run_id, {TAG_EXPERIMENT: self.settings.experiment}
            return self._create_run({TAG_RUN: name, TAG_KIND: "pipeline"}, tags, name)

    def _run_of_kfp_plugin(self) -> Run | None:
        """Return the parent of the run that KFP's MLflow plugin opened for this task, or None without the plugin."""
        task_run_id = os.environ.get("MLFLOW_RUN_ID")
        if not task_run_id:
            return None
        task = self.client.get_run(task_run_id)
        parent = self.client.get_run(task.data.tags[PARENT]) if PARENT in task.data.tags else task
        self._experiment_id = parent.info.experiment_id
        if parent.data.tags.get(TAG_RUN) != self.settings.pipeline_run_id:
            self.set_tags(parent.info.run_id, {TAG_RUN: self.settings.pipeline_run_id, TAG_KIND: "pipeline", **self._origin()})
        return parent

    def step_run(self, step: str, *, run_key: str | None = None, name: str | None = None, parent_id: str | None = None) -> Run:
        """Return the run of `step`: of this pipeline run or, with `run_key`, of that training, whichever pipeline run began it.

        A new one is a child of this pipeline run, or of the run `parent_id`.
        """
        with self.translate_errors():
            identity = {TAG_STEP: step, TAG_RUN_KEY: run_key} if run_key else {TAG_STEP: step, TAG_RUN: self.settings.pipeline_run_id}
            run = self.find_run(identity)
            if run is not None:
                return run
            parent_id = parent_id or self.pipeline_run().info.run_id
            return self._create_run(identity, {TAG_KIND: "step", TAG_RUN: self.settings.pipeline_run_id, PARENT: parent_id}, name or step)

    def _create_run(self, identity: Mapping[str, str], tags: Mapping[str, str], name: str) -> Run:
        """Create the run with the tags `identity`, and return it, or the one of a process that created it at the same moment.

        MLflow has no unique tags. Of several the oldest is found from then on; ours is deleted if it is not that one, unless a third
        process uses it already: clocks differ, and the oldest need not be there first.
        """
        run = self.client.create_run(self.experiment_id, tags={**tags, **identity, **self._origin()}, run_name=name)
        oldest = self.find_run(identity) or run
        if oldest.info.run_id != run.info.run_id:
            with suppress(MlflowException):  # this user may not delete runs: an empty one more harms nothing
                if self._is_unused(run):
                    self.client.delete_run(run.info.run_id)
        return oldest

    def _is_unused(self, created: Run) -> bool:
        """Return whether nothing was logged to a run since it was created, and no other is its child."""
        run = self.client.get_run(created.info.run_id)
        has_inputs = run.inputs is not None and bool(run.inputs.dataset_inputs)
        is_as_created = run.data.to_dictionary() == created.data.to_dictionary() and not has_inputs
        return is_as_created and not self.search_runs({PARENT: created.info.run_id})

    def training_run(self, run_key: str) -> Run | None:
        """Return the run of the training `run_key`, or None if MLflow has none."""
        return self.find_run({TAG_STEP: "train", TAG_RUN_KEY: run_key})

    @contextmanager
    def mark_running(self, run: Run) -> Iterator[str]:
        """Mark `run` as running inside the block and with the right status after it; yields its id."""
        run_id = run.info.run_id
        self.set_status(run_id, "RUNNING")
        try:
            yield run_id
        except BaseException as error:
            with suppress(Exception):  # the error itself matters more than its record in MLflow
                self.close(run_id, error)
            raise
        self.set_status(run_id, "FINISHED")

    def close(self, run_id: str, error: BaseException) -> None:
        """End `run_id` as failed or killed and tag it with the error."""
        killed = isinstance(error, Preempted | Interrupted | KeyboardInterrupt | SystemExit)
        failure = Failure.of(error)
        self.set_tags(run_id, {"error.type": failure.kind, "error.message": shorten(failure.message, max_characters=1000)})
        self.set_status(run_id, "KILLED" if killed else "FAILED")

    def set_status(self, run_id: str, status: str) -> None:
        """Set the status of a run, with its end time if it is final."""
        with self.translate_errors():
            if status == "RUNNING":
                self.client.update_run(run_id, status=status)
            else:
                self.client.set_terminated(run_id, status=status)

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set tags on a run."""
        with self.translate_errors():
            texts = [RunTag(key, shorten(str(value), max_characters=5000)) for key, value in tags.items()]
            self.client.log_batch(run_id, tags=texts, synchronous=True)

    def log_params(self, run_id: str, params: Mapping[str, object]) -> None:
        """Log flat parameters once; one that is already logged is left alone, because MLflow refuses to change it: the first value stands.

        Where another process logs some of them at this moment, MLflow may refuse all of these: the rest is logged then.
        """

        def log() -> None:
            present = self.client.get_run(run_id).data.params
            fresh = [Param(key, shorten(str(value), max_characters=500)) for key, value in params.items() if key not in present]
            try:
                self.client.log_batch(run_id, params=fresh[: max(0, _MAX_PARAMS - len(present))], synchronous=True)
            except MlflowException as error:
                # Another value was logged after we had looked.
                if error.error_code != "INVALID_PARAMETER_VALUE" or self.client.get_run(run_id).data.params.keys() == present.keys():
                    raise
                log()

        with self.translate_errors():
            write_despite_conflicts(log)

    def log_metrics(self, run_id: str, points: Sequence[Point]) -> None:
        """Log metric points in as few requests as MLflow allows."""
        with self.translate_errors():
            for start in range(0, len(points), _BATCH):
                metrics = [Metric(p.key, p.value, p.timestamp_ms, p.step) for p in points[start : start + _BATCH]]
                write_despite_conflicts(partial(self.client.log_batch, run_id, metrics=metrics, synchronous=True))

    def log_values(self, run_id: str, values: Mapping[str, float], *, step: int = 0) -> None:
        """Log one value per key at `step`, unless the key already has one there."""
        now_ms = int(time.time() * 1000)
        with translate_mlflow_errors(self.settings.mlflow_uri):
            known = self.client.get_run(run_id).data.metrics
        fresh = [
            Point(key, step, value, now_ms)
            for key, value in values.items()
            if key not in known or step not in self.logged_steps(run_id, key)
        ]
        self.log_metrics(run_id, fresh)

    def logged_steps(self, run_id: str, key: str) -> set[int]:
        """Return the steps at which metric `key` has a value."""
        with self.translate_errors():
            return {metric.step for metric in self.client.get_metric_history(run_id, key)}

    def log_image(self, run_id: str, image: Any, *, key: str, step: int, timestamp_ms: int | None = None) -> None:
        """Log an image (uint8 array, h x w x 3) under a key, unless the key already has one at `step`."""
        with self.translate_errors():
            if not is_image_logged(key, step, self.image_paths(run_id)):
                self.client.log_image(run_id, image, key=key, step=step, timestamp=timestamp_ms, synchronous=True)

    def image_paths(self, run_id: str) -> list[str]:
        """Return the artifact paths of the images that were logged to a run."""
        return self.artifact_paths(run_id, "images")

    def artifact_paths(self, run_id: str, folder: str) -> list[str]:
        """Return the paths of a run's artifacts in `folder`."""
        with self.translate_errors():
            return [item.path for item in self.client.list_artifacts(run_id, folder)]

    def read_artifact(self, run_id: str, path: str) -> bytes:
        """Return the bytes of one artifact of a run."""
        with tempfile.TemporaryDirectory(prefix="celebdit-") as folder, self.translate_errors():
            return Path(self.client.download_artifacts(run_id, path, folder)).read_bytes()

    def log_artifact(self, run_id: str, path: Path, folder: str | None = None) -> None:
        """Upload a file as an artifact of a run."""
        with self.translate_errors():
            self.client.log_artifact(run_id, str(path), folder)

    def log_text(self, run_id: str, text: str, file: str) -> None:
        """Store a text as an artifact of a run."""
        with self.translate_errors():
            self.client.log_text(run_id, text, file)

    def log_dataset(self, run_id: str, manifest: DatasetManifest, *, context: str) -> None:
        """Link a dataset to a run. MLflow keeps at most 36 characters of a digest; the full one goes into a tag."""
        entity = Dataset(
            name=manifest.name,
            digest=manifest.digest[:_DIGEST_CHARACTERS],
            source_type="s3",
            source=_json({"uri": manifest.uri, "from": manifest.source}),
            profile=_json({key: getattr(manifest, key) for key in ("num_images", "num_held_out", "image_px")}),
        )
        with self.translate_errors():
            inputs = [DatasetInput(dataset=entity, tags=[InputTag("mlflow.data.context", context)])]
            write_despite_conflicts(lambda: self.client.log_inputs(run_id, inputs))
            self.set_tags(run_id, {TAG_DATASET: manifest.digest})

    def run_url(self, run_id: str, *, experiment_id: str | None = None) -> str:
        """Return the address of a run in the MLflow UI."""
        return f"{self.settings.mlflow_uri.rstrip('/')}/{run_page(run_id, experiment_id or self.experiment_id)}"

    def compare_url(self, run_ids: Sequence[str], *, experiment_id: str) -> str:
        """Return the address of MLflow's charts and images of several runs side by side."""
        return f"{self.settings.mlflow_uri.rstrip('/')}/{runs_page(run_ids, experiment_id)}"

    def _origin(self) -> dict[str, str]:
        settings = self.settings
        tags = {
            "git.commit": settings.git_commit,
            "image.digest": settings.image_digest,
            "preset": settings.preset,
            "kfp.run_url": settings.run_url,
            "mlflow.source.name": f"celebdit {settings.preset or 'run'}",
            "mlflow.source.type": "LOCAL" if settings.run_url is None else "JOB",
            "mlflow.source.git.commit": settings.git_commit,
        }
        return {name: value for name, value in tags.items() if value is not None}


def _json(value: object) -> str:
    return json.dumps(value, sort_keys=True, default=str)
