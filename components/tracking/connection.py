"""Connection to an MLflow server: limits of requests, errors, the experiment, and the search for runs by their tags.

Promises: every call is bounded in time and ends with an error of this project (`mlflow_errors.py`). What the runs hold is in `client.py`.
"""

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager

from mlflow import MlflowClient
from mlflow.entities import Run, ViewType

from components.settings import Settings
from components.storage.addressing import mlflow_s3_environment
from components.tracking.experiments import create_experiment, find_experiment
from components.tracking.mlflow_errors import translate_mlflow_errors
from components.tracking.request_limits import set_default_limits
from components.tracking.retry_log import log_retries
from components.tracking.tags import TAG_EXPERIMENT, TAG_KIND, TAG_RUN

_EXPERIMENTS = 100
"""Named by one query."""
_PAGE_RUNS = 1000
"""Runs in one answer."""


class MlflowConnection:
    """An MLflow server and one experiment of it."""

    def __init__(self, settings: Settings, *, request_timeout_s: int = 20, max_retries: int = 3) -> None:
        set_default_limits(timeout_s=request_timeout_s, max_retries=max_retries)
        log_retries()
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        # Else MLflow redirects its clients to object storage at the address that it uses itself, which they may not reach.
        for direction in ("UPLOAD", "DOWNLOAD"):
            os.environ.setdefault(f"MLFLOW_ENABLE_PROXY_MULTIPART_{direction}", "false")
        # Where MLflow's clients write to S3 themselves, MLflow's own boto3 client knows neither celebdit's settings nor AWS_REGION.
        for name, value in mlflow_s3_environment().items():
            os.environ.setdefault(name, value)
        self.settings = settings
        self.client = MlflowClient(tracking_uri=settings.mlflow_uri)
        self._experiment_id: str | None = None

    def translate_errors(self, *, model: str | None = None) -> AbstractContextManager[None]:
        """Run calls of MLflow's client, as `translate_mlflow_errors` does; `model` is the registered model that they are about."""
        return translate_mlflow_errors(self.settings.mlflow_uri, experiment=self.settings.experiment, model=model)

    @property
    def experiment_id(self) -> str:
        """The experiment's id; the experiment is created when it is first needed, unless it was renamed during this pipeline run."""
        if self._experiment_id is None:
            client, name = self.client, self.settings.experiment
            with self.translate_errors():
                self._experiment_id = find_experiment(client, name) or self._experiment_of_run() or create_experiment(client, name)
        return self._experiment_id

    def _experiment_of_run(self) -> str | None:
        """Return the id of the experiment in which this pipeline run began under the name that is configured, or None if it has not."""
        if self.settings.run_id is None:
            return None
        tags = {TAG_RUN: self.settings.run_id, TAG_KIND: "pipeline", TAG_EXPERIMENT: self.settings.experiment}
        runs = self.search_all_runs(tags)
        return next((str(run.info.experiment_id) for run in runs if run.info.lifecycle_stage == "active"), None)

    def find_run(self, tags: Mapping[str, str]) -> Run | None:
        """Return the oldest run of the experiment with all of `tags`, so that racing creators settle on one."""
        matches = self.search_runs(tags)
        return min(matches, key=lambda run: (run.info.start_time, run.info.run_id)) if matches else None

    def search_runs(self, tags: Mapping[str, str]) -> list[Run]:
        """Return the runs of the experiment with all of `tags`."""
        query = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
        return self._search([self.experiment_id], query, ViewType.ACTIVE_ONLY)

    def search_all_runs(self, tags: Mapping[str, str]) -> list[Run]:
        """Return the runs with all of `tags` of all experiments that this user can read, deleted ones included."""
        return self._search_everywhere(" and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items()), ViewType.ALL)

    def search_running_runs(self) -> list[Run]:
        """Return the runs that are RUNNING, of all experiments that this user can read."""
        return self._search_everywhere("attributes.status = 'RUNNING'", ViewType.ACTIVE_ONLY)

    def _search_everywhere(self, query: str, view: int) -> list[Run]:
        with translate_mlflow_errors(self.settings.mlflow_uri):
            page = self.client.search_experiments(view_type=ViewType.ALL)
            experiments = list(page)
            while page.token:
                page = self.client.search_experiments(view_type=ViewType.ALL, page_token=page.token)
                experiments += page
            ids = [str(experiment.experiment_id) for experiment in experiments]
            chunks = [ids[start : start + _EXPERIMENTS] for start in range(0, len(ids), _EXPERIMENTS)]
            return [run for chunk in chunks for run in self._search(chunk, query, view)]

    def _search(self, experiment_ids: list[str], query: str, view: int) -> list[Run]:
        """Return all matching runs of the experiments, newest first: the answers of MLflow are pages of them."""
        runs: list[Run] = []
        token: str | None = None
        while True:
            with self.translate_errors():
                page = self.client.search_runs(experiment_ids, query, run_view_type=view, max_results=_PAGE_RUNS, page_token=token)
            runs += page
            if not (token := page.token):
                return runs
