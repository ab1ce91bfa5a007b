"""Checkpoints as MLflow's LoggedModels: one per checkpoint and EMA, with the metrics that were measured of it."""

import time
from functools import partial

from mlflow.entities import LoggedModel

from components.manifests import EvaluationReport
from components.tracking.client import Tracking
from components.tracking.database_conflicts import write_despite_conflicts
from components.tracking.tags import TAG_CHECKPOINT, TAG_CHECKPOINT_URI, TAG_EMA, TAG_RUN_KEY

__all__ = ["LoggedModel", "LoggedModels"]


class LoggedModels:
    """The logged models of an experiment."""

    def __init__(self, tracking: Tracking) -> None:
        self._tracking = tracking
        self._client = tracking.client

    def find(self, checkpoint_digest: str, ema: str) -> LoggedModel | None:
        """Return the logged model of the weights `ema` of a checkpoint, or None; of several that racing steps made, the oldest."""
        matching = f"tags.`{TAG_CHECKPOINT}` = '{checkpoint_digest}' AND tags.`{TAG_EMA}` = '{ema}'"
        with self._tracking.translate_errors():
            models = self._client.search_logged_models([self._tracking.experiment_id], filter_string=matching)
        return min(models, key=lambda model: (model.creation_timestamp, model.model_id)) if models else None

    def find_or_create(self, run_id: str, *, name: str, digest: str, ema: str, uri: str, run_key: str) -> LoggedModel:
        """Return the logged model of the weights `ema` of a checkpoint that the run `run_id` made; it is created if there is none."""
        with self._tracking.translate_errors():
            return self.find(digest, ema) or self._client.create_logged_model(
                self._tracking.experiment_id,
                name=name,
                source_run_id=run_id,
                tags={TAG_CHECKPOINT: digest, TAG_EMA: ema, TAG_CHECKPOINT_URI: uri, TAG_RUN_KEY: run_key},
                model_type="denoiser",
            )

    def log_evaluation(self, run_id: str, report: EvaluationReport) -> str:
        """Log the metrics of evaluated weights once, on their logged model and their training's run; return the model's id."""
        with self._tracking.translate_errors():
            name = f"step-{report.checkpoint_step}-ema-{report.ema.replace('.', '_')}"
            model = self.find_or_create(
                run_id, name=name, digest=report.checkpoint_digest, ema=report.ema, uri=report.checkpoint_uri, run_key=report.run_key
            )
            logged = {metric.key for metric in model.metrics or []}
            step, now_ms = report.checkpoint_step, int(time.time() * 1000)
            for key, value in report.metrics.items():
                if key not in logged:
                    log = partial(self._client.log_metric, run_id, key, value, timestamp=now_ms, step=step, model_id=model.model_id)
                    write_despite_conflicts(log)
            return str(model.model_id)
