"""Operations of Kubeflow Pipelines that we use, on its REST API v2beta1.

Promises: creating is idempotent by name. Retries, errors and pages are in `requests.py`, the bodies of requests in
`bodies.py`.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import kfp_server_api

from components.environment import KFP_NAMESPACE
from components.errors import BadInput
from pipeline.kubeflow import bodies
from pipeline.kubeflow.address import KfpAddress
from pipeline.kubeflow.bodies import PluginsInput, Version, name_filter
from pipeline.kubeflow.requests import PAGE_SIZE, Patience, Requests

PIPELINE_NAME = "celebdit"


class Kubeflow:
    """One Kubeflow Pipelines server."""

    def __init__(self, address: KfpAddress, patience: Patience | None = None) -> None:
        self.address = address
        self._requests = Requests(address, patience or Patience())
        client = self._requests.client
        self._pipelines = kfp_server_api.PipelineServiceApi(client)
        self._uploads = kfp_server_api.PipelineUploadServiceApi(client)
        self._experiments = kfp_server_api.ExperimentServiceApi(client)
        self._runs = kfp_server_api.RunServiceApi(client)
        self._schedules = kfp_server_api.RecurringRunServiceApi(client)
        self._health = kfp_server_api.HealthzServiceApi(client)
        self._multi_user: bool | None = None
        self._plugins: bool | None = None

    def multi_user(self) -> bool:
        """Return whether the server has a namespace per user; also checks that it is Kubeflow Pipelines.

        Raises:
            BadInput: if another server answers, or a namespace is needed and none was given.
        """
        if self._multi_user is None:
            health = self._requests.ask("check its health", self._health.healthz_service_get_healthz)
            self._multi_user = bool(health.multi_user)
        if self._multi_user and self.address.namespace is None:
            raise BadInput(
                f"Kubeflow Pipelines at {self.address.endpoint} has several namespaces and none was given",
                hint=f"give --namespace or set {KFP_NAMESPACE}",
            )
        return self._multi_user

    def server_version(self) -> str | None:
        """Return the server's version, or None; only the deprecated v1beta1 health check reports it."""
        health = self._requests.plain("/apis/v1beta1/healthz")
        return str(health["tag_name"]) if isinstance(health, dict) and health.get("tag_name") else None

    def run_url(self, run_id: str) -> str:
        """Return the URL of a run in the KFP UI."""
        return f"{self.address.endpoint}/#/runs/details/{run_id}"

    def find_experiment(self, name: str) -> str | None:
        """Return the id of experiment `name`, or None."""
        page = self._requests.ask(
            f"look for experiment {name!r}",
            self._experiments.experiment_service_list_experiments,
            filter=name_filter(name),
            **self._scope(),
        )
        return next((str(experiment.experiment_id) for experiment in page.experiments or []), None)

    def experiment(self, name: str) -> str:
        """Return the id of experiment `name`; creates it if needed."""
        body = kfp_server_api.V2beta1Experiment(display_name=name, namespace=self._namespace())

        def make() -> str:
            call = self._experiments.experiment_service_create_experiment
            return str(self._requests.ask_once(f"create experiment {name!r}", call, body).experiment_id)

        return self._requests.find_or_make(lambda: self.find_experiment(name), make)

    def has_plugins(self) -> bool:
        """Return whether the server knows plugins and tags."""
        if self._plugins is None:
            self._plugins = bodies.knows_plugins(self.server_version())
        return self._plugins

    def version(self, name: str, package: Path, description: str, tags: Mapping[str, str] | None = None) -> Version:
        """Return version `name` of the pipeline, uploaded from `package` if it is missing; with `tags` where the server knows them."""
        pipeline_id = self._pipeline()
        options = {"tags": json.dumps(dict(tags))} if tags and self.has_plugins() else {}
        uploaded = False

        def find() -> str | None:
            page = self._requests.ask(
                f"look for version {name}",
                self._pipelines.pipeline_service_list_pipeline_versions,
                pipeline_id,
                filter=name_filter(name),
                page_size=PAGE_SIZE,
            )
            return next((str(version.pipeline_version_id) for version in page.pipeline_versions or []), None)

        def upload() -> str:
            nonlocal uploaded
            uploaded = True
            created = self._requests.ask_once(
                f"upload version {name}",
                self._uploads.upload_pipeline_version,
                str(package),
                name=name,
                pipelineid=pipeline_id,
                description=description,
                **options,
            )
            return str(created.pipeline_version_id)

        version_id = self._requests.find_or_make(find, upload)
        return Version(pipeline_id, version_id, is_new=uploaded)

    def find_runs(self, name: str, experiment_id: str) -> list[Any]:
        """Return the runs called `name` that are not archived, oldest first."""
        page = self._requests.ask(
            f"look for run {name}",
            self._runs.run_service_list_runs,
            experiment_id=experiment_id,
            filter=name_filter(name),
            sort_by="created_at asc",
            page_size=PAGE_SIZE,
        )
        return [run for run in page.runs or [] if run.storage_state != "ARCHIVED"]

    def start_run(
        self,
        name: str,
        experiment_id: str,
        version: Version,
        parameters: Mapping[str, str] | None = None,
        *,
        plugins: PluginsInput | None = None,
    ) -> Any:
        """Return the run called `name`; starts it if there is none. Of two concurrent starts, the older run is kept.

        Plugins get their input where the server knows them.
        """
        body = bodies.run_body(name, experiment_id, version, parameters)

        def find() -> Any | None:
            return next(iter(self.find_runs(name, experiment_id)), None)

        def start() -> Any:
            return self._requests.ask_once(f"start run {name}", self._runs.run_service_create_run, body)

        run = self._requests.find_or_make(find, lambda: self._create(start, body, plugins))
        same_name = self.find_runs(name, experiment_id)
        if same_name and same_name[0].run_id != run.run_id:
            self._requests.ask("stop a duplicate run", self._runs.run_service_terminate_run, run.run_id)
            self._requests.ask("archive a duplicate run", self._runs.run_service_archive_run, run.run_id)
            return same_name[0]
        return run

    def run(self, run_id: str) -> Any:
        """Return a run with the state of its steps."""
        return self._requests.ask(f"read run {run_id}", self._runs.run_service_get_run, run_id)

    def run_now(self, run_id: str) -> Any:
        """Return a run without retries."""
        return self._requests.ask_once(f"read run {run_id}", self._runs.run_service_get_run, run_id)

    def retry_run(self, run_id: str) -> None:
        """Retry the failed steps of a run."""
        self._requests.ask_once(f"retry run {run_id}", self._runs.run_service_retry_run, run_id)

    def runs(self, *, experiment: str | None, limit: int) -> list[Any]:
        """Return the newest runs, of all experiments or of one."""
        scope = self._scope()
        if experiment is not None:
            experiment_id = self.find_experiment(experiment)
            if experiment_id is None:
                return []
            scope = {"experiment_id": experiment_id}
        return self._requests.list_entries(
            "list runs", self._runs.run_service_list_runs, "runs", limit=limit, sort_by="created_at desc", **scope
        )

    def schedule(
        self,
        name: str,
        experiment_id: str,
        version: Version,
        *,
        cron: str | None,
        every_s: int | None,
        plugins: PluginsInput | None = None,
    ) -> tuple[Any, bool]:
        """Return the recurring run of this name and timing, and whether this call created it. Its runs have the input for plugins."""
        body = bodies.schedule_body(name, experiment_id, version, cron=cron, every_s=every_s)
        is_new = False

        def start() -> Any:
            nonlocal is_new
            is_new = True
            return self._requests.ask_once(f"create schedule {name}", self._schedules.recurring_run_service_create_recurring_run, body)

        def find() -> Any | None:
            same_name = self.schedules(experiment_id, name=name)
            return next((entry for entry in same_name if bodies.has_timing(entry, cron=cron, every_s=every_s)), None)

        return self._requests.find_or_make(find, lambda: self._create(start, body, plugins)), is_new

    def schedules(self, experiment_id: str, *, name: str | None = None) -> list[Any]:
        """Return the recurring runs of an experiment, or those of one name."""
        call = self._schedules.recurring_run_service_list_recurring_runs
        display_name = None if name is None else name_filter(name)
        return self._requests.list_entries("list schedules", call, "recurring_runs", experiment_id=experiment_id, filter=display_name)

    def unschedule(self, recurring_run_id: str) -> None:
        """Delete a recurring run; the runs that it started are kept."""
        self._requests.ask("delete a schedule", self._schedules.recurring_run_service_delete_recurring_run, recurring_run_id)

    def _pipeline(self) -> str:
        def find() -> str | None:
            page = self._requests.ask(
                f"look for pipeline {PIPELINE_NAME}",
                self._pipelines.pipeline_service_list_pipelines,
                filter=name_filter(PIPELINE_NAME),
                **self._scope(),
            )
            return next((str(pipeline.pipeline_id) for pipeline in page.pipelines or []), None)

        body = kfp_server_api.V2beta1Pipeline(
            display_name=PIPELINE_NAME, name=PIPELINE_NAME, namespace=self._namespace(), description="Trains a face generator."
        )
        return self._requests.find_or_make(
            find,
            lambda: str(self._requests.ask_once("create the pipeline", self._pipelines.pipeline_service_create_pipeline, body).pipeline_id),
        )

    def _create(self, create: Callable[[], Any], body: Any, plugins: PluginsInput | None) -> Any:
        return bodies.create_with_plugins(create, body, plugins) if plugins and self.has_plugins() else create()

    def _namespace(self) -> str | None:
        return self.address.namespace if self.multi_user() else None

    def _scope(self) -> dict[str, str]:
        namespace = self._namespace()
        return {"namespace": namespace} if namespace else {}
