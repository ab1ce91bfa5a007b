"""The door to Kubeflow Pipelines: its REST API (v2beta1) as the few verbs that we need, with errors for people.

Promises: everything that creates is idempotent by name: it looks first, and looks again when the answer was lost or somebody else was
faster; temporary failures are tried again until a deadline; a token is sent and never shown. What is submitted is not known here.
"""

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import kfp_server_api
import urllib3
from kfp_server_api import ApiException

from components.errors import BadInput, CelebditError, TemporaryFailure
from components.retry import RetryPolicy, retry

ENDPOINT = "KF_PIPELINES_ENDPOINT"
NAMESPACE = "CELEBDIT_KFP_NAMESPACE"
TOKEN = "CELEBDIT_KFP_TOKEN"  # noqa: S105 - the name of a variable
COOKIES = "CELEBDIT_KFP_COOKIES"
CA_FILE = "CELEBDIT_KFP_CA_FILE"
PIPELINE_NAME = "celebdit"
_PAGE = 100
_TEMPORARY = (408, 429, 500, 502, 503, 504)
T = TypeVar("T")


@dataclass(frozen=True)
class KfpAddress:
    """Where the API is and who we are there. Credentials do not show in the representation."""

    endpoint: str
    namespace: str | None
    token: str | None = field(default=None, repr=False)
    cookies: str | None = field(default=None, repr=False)
    ca_file: str | None = None

    @classmethod
    def find(cls, endpoint: str | None, namespace: str | None, environ: Mapping[str, str] = os.environ) -> "KfpAddress":
        """Take the endpoint and the namespace as given or from the environment, and credentials from the environment only.

        Raises:
            BadInput: if there is no endpoint, or it is not a plain http(s) address.
        """
        given = (endpoint or environ.get(ENDPOINT) or "").strip().rstrip("/")
        if not given:
            raise BadInput(
                "nobody said where Kubeflow Pipelines is",
                hint=f"give --endpoint or set {ENDPOINT}; kubectl -n kubeflow port-forward svc/ml-pipeline-ui 8080:80 makes it http://localhost:8080",
            )
        address = given if "://" in given else f"https://{given}"
        parts = urlsplit(address)
        if parts.username or parts.password:
            raise BadInput("the endpoint contains credentials", hint=f"set {TOKEN} or {COOKIES} instead")
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise BadInput(f"--endpoint {given} is not an address", hint="write https://host/path, without what follows # in a browser")
        return cls(
            endpoint=address,
            namespace=namespace or environ.get(NAMESPACE) or None,
            token=environ.get(TOKEN) or None,
            cookies=environ.get(COOKIES) or None,
            ca_file=environ.get(CA_FILE) or None,
        )


@dataclass(frozen=True)
class Version:
    """An uploaded version of the pipeline."""

    pipeline_id: str
    version_id: str
    is_new: bool


class Kubeflow:
    """One Kubeflow Pipelines server."""

    def __init__(
        self,
        address: KfpAddress,
        *,
        request_timeout_s: float = 30.0,
        deadline_s: float = 120.0,
        sleep: Callable[[float], None] = time.sleep,
        on_retry: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.address = address
        configuration = kfp_server_api.Configuration(host=address.endpoint)
        if address.token:
            configuration.api_key = {"authorization": address.token}
            configuration.api_key_prefix = {"authorization": "Bearer"}
        configuration.ssl_ca_cert = address.ca_file
        configuration.retries = urllib3.Retry(0, redirect=0)  # retrying is decided here, where it is known what is idempotent
        client = self._client = kfp_server_api.ApiClient(configuration, cookie=address.cookies)
        self._timeout = (min(10.0, request_timeout_s), request_timeout_s)
        self._policy = RetryPolicy(deadline_s=deadline_s, first_pause_s=0.5)
        self._sleep = sleep
        self._on_retry = on_retry
        self._pipelines = kfp_server_api.PipelineServiceApi(client)
        self._uploads = kfp_server_api.PipelineUploadServiceApi(client)
        self._experiments = kfp_server_api.ExperimentServiceApi(client)
        self._runs = kfp_server_api.RunServiceApi(client)
        self._schedules = kfp_server_api.RecurringRunServiceApi(client)
        self._health = kfp_server_api.HealthzServiceApi(client)
        self._multi_user: bool | None = None

    def multi_user(self) -> bool:
        """Return whether the server keeps its users in namespaces of their own; also proves that it is Kubeflow Pipelines.

        Raises:
            BadInput: if something else answers there, or it wants a namespace and none was given.
        """
        if self._multi_user is None:
            health = self._ask("look at", self._health.healthz_service_get_healthz)
            self._multi_user = bool(health.multi_user)
        if self._multi_user and self.address.namespace is None:
            raise BadInput(
                f"Kubeflow Pipelines at {self.address.endpoint} has namespaces and none was named",
                hint=f"give --namespace or set {NAMESPACE}",
            )
        return self._multi_user

    def server_version(self) -> str | None:
        """Return the server's version; only its older health check, which may be gone one day, tells it."""
        try:
            raw = self._client.call_api(
                "/apis/v1beta1/healthz", "GET", response_type="object", auth_settings=["Bearer"], _request_timeout=self._timeout
            )
            return str(raw[0]["tag_name"]) or None
        except (ApiException, urllib3.exceptions.HTTPError, KeyError, TypeError, ValueError):
            return None

    def run_url(self, run_id: str) -> str:
        """Return the address of a run for a browser."""
        return f"{self.address.endpoint}/#/runs/details/{run_id}"

    def experiment(self, name: str) -> str:
        """Return the id of experiment `name`, made if needed."""

        def find() -> str | None:
            listed = self._ask(
                f"look for experiment {name!r}", self._experiments.experiment_service_list_experiments, filter=_named(name), **self._scope()
            )
            return next((str(found.experiment_id) for found in listed.experiments or []), None)

        body = kfp_server_api.V2beta1Experiment(display_name=name, namespace=self._namespace())
        return self._find_or_make(
            find,
            lambda: str(
                self._ask_once(f"make experiment {name!r}", self._experiments.experiment_service_create_experiment, body).experiment_id
            ),
        )

    def version(self, name: str, package: Path, description: str) -> Version:
        """Return version `name` of the pipeline, uploaded from `package` if the server does not have it."""
        pipeline_id = self._pipeline()
        uploaded = False

        def find() -> str | None:
            listed = self._ask(
                f"look for version {name}",
                self._pipelines.pipeline_service_list_pipeline_versions,
                pipeline_id,
                filter=_named(name),
                page_size=_PAGE,
            )
            return next((str(found.pipeline_version_id) for found in listed.pipeline_versions or []), None)

        def upload() -> str:
            nonlocal uploaded
            uploaded = True
            made = self._ask_once(
                f"upload version {name}",
                self._uploads.upload_pipeline_version,
                str(package),
                name=name,
                pipelineid=pipeline_id,
                description=description,
            )
            return str(made.pipeline_version_id)

        version_id = self._find_or_make(find, upload)
        return Version(pipeline_id, version_id, is_new=uploaded)

    def find_runs(self, name: str, experiment_id: str) -> list[Any]:
        """Return the runs called `name` that are not archived, oldest first."""
        listed = self._ask(
            f"look for run {name}",
            self._runs.run_service_list_runs,
            experiment_id=experiment_id,
            filter=_named(name),
            sort_by="created_at asc",
            page_size=_PAGE,
        )
        return [run for run in listed.runs or [] if run.storage_state != "ARCHIVED"]

    def start_run(self, name: str, experiment_id: str, version: Version, parameters: Mapping[str, str] | None = None) -> Any:
        """Return the one run called `name`, started if there is none. Of two that were started at the same moment, the older stays."""
        body = kfp_server_api.V2beta1Run(
            display_name=name,
            experiment_id=experiment_id,
            pipeline_version_reference=_reference(version),
            runtime_config=kfp_server_api.V2beta1RuntimeConfig(parameters=dict(parameters or {})),
        )

        def find() -> Any | None:
            return next(iter(self.find_runs(name, experiment_id)), None)

        started = self._find_or_make(find, lambda: self._ask_once(f"start run {name}", self._runs.run_service_create_run, body))
        twins = self.find_runs(name, experiment_id)
        if twins and twins[0].run_id != started.run_id:
            self._ask("stop a twin run", self._runs.run_service_terminate_run, started.run_id)
            self._ask("archive a twin run", self._runs.run_service_archive_run, started.run_id)
            return twins[0]
        return started

    def run(self, run_id: str) -> Any:
        """Return a run with the state of its steps."""
        return self._ask(f"read run {run_id}", self._runs.run_service_get_run, run_id)

    def run_now(self, run_id: str) -> Any:
        """Return a run, asking once only."""
        return self._ask_once(f"read run {run_id}", self._runs.run_service_get_run, run_id)

    def retry_run(self, run_id: str) -> None:
        """Start the failed steps of a run again."""
        self._ask_once(f"retry run {run_id}", self._runs.run_service_retry_run, run_id)

    def runs(self, *, experiment: str | None, limit: int) -> list[Any]:
        """Return the newest runs."""
        scope = {"experiment_id": self.experiment(experiment)} if experiment else self._scope()
        found: list[Any] = []
        token = ""
        while len(found) < limit:
            page = self._ask(
                "list runs",
                self._runs.run_service_list_runs,
                sort_by="created_at desc",
                page_size=min(_PAGE, limit - len(found)),
                page_token=token,
                **scope,
            )
            found += page.runs or []
            token = page.next_page_token
            if not token:
                break
        return found

    def schedule(self, name: str, experiment_id: str, version: Version, *, cron: str | None, every_s: int | None) -> tuple[Any, bool]:
        """Return the recurring run called `name` and whether it was made now."""
        trigger = kfp_server_api.V2beta1Trigger(
            cron_schedule=kfp_server_api.V2beta1CronSchedule(cron=cron) if cron else None,
            periodic_schedule=kfp_server_api.V2beta1PeriodicSchedule(interval_second=str(every_s)) if every_s else None,
        )
        body = kfp_server_api.V2beta1RecurringRun(
            display_name=name,
            experiment_id=experiment_id,
            pipeline_version_reference=_reference(version),
            runtime_config=kfp_server_api.V2beta1RuntimeConfig(parameters={}),
            max_concurrency="1",
            no_catchup=True,
            mode="ENABLE",
            trigger=trigger,
        )
        made = False

        def create() -> Any:
            nonlocal made
            made = True
            return self._ask_once(f"make schedule {name}", self._schedules.recurring_run_service_create_recurring_run, body)

        def find() -> Any | None:
            return next((found for found in self.schedules(experiment_id) if found.display_name == name), None)

        return self._find_or_make(find, create), made

    def schedules(self, experiment_id: str) -> list[Any]:
        """Return the recurring runs of an experiment."""
        listed = self._ask(
            "list schedules", self._schedules.recurring_run_service_list_recurring_runs, experiment_id=experiment_id, page_size=_PAGE
        )
        return list(listed.recurring_runs or [])

    def unschedule(self, recurring_run_id: str) -> None:
        """Delete a recurring run; runs that it started stay."""
        self._ask("delete a schedule", self._schedules.recurring_run_service_delete_recurring_run, recurring_run_id)

    def _pipeline(self) -> str:
        def find() -> str | None:
            listed = self._ask(
                f"look for pipeline {PIPELINE_NAME}",
                self._pipelines.pipeline_service_list_pipelines,
                filter=_named(PIPELINE_NAME),
                **self._scope(),
            )
            return next((str(found.pipeline_id) for found in listed.pipelines or []), None)

        body = kfp_server_api.V2beta1Pipeline(
            display_name=PIPELINE_NAME, name=PIPELINE_NAME, namespace=self._namespace(), description="Trains a face generator."
        )
        return self._find_or_make(
            find, lambda: str(self._ask_once("make the pipeline", self._pipelines.pipeline_service_create_pipeline, body).pipeline_id)
        )

    def _namespace(self) -> str | None:
        return self.address.namespace if self.multi_user() else None

    def _scope(self) -> dict[str, str]:
        namespace = self._namespace()
        return {"namespace": namespace} if namespace else {}

    def _find_or_make(self, find: Callable[[], T | None], make: Callable[[], T]) -> T:
        """Return what is there, or make it; when the answer to making it was lost, or somebody was faster, look again."""

        def attempt() -> T:
            found = find()
            return make() if found is None else found

        return self._patiently(attempt, lambda error: isinstance(error, TemporaryFailure | _Exists))

    def _ask(self, what: str, call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Make a request that may be repeated."""
        return self._patiently(
            lambda: self._ask_once(what, call, *arguments, **options),
            lambda error: isinstance(error, TemporaryFailure) and not isinstance(error, _GaveUp),
        )

    def _patiently(self, call: Callable[[], T], is_temporary: Callable[[Exception], bool]) -> T:
        def tell(attempt: int, error: Exception) -> None:
            self._on_retry(f"{error}; trying again")

        try:
            return retry(
                call,
                policy=self._policy,
                is_temporary=lambda error: is_temporary(error) and not isinstance(error, _GaveUp),
                on_retry=tell,
                sleep=self._sleep,
            )
        except TemporaryFailure as error:
            raise _GaveUp(error.message, hint=error.hint) from error

    def _ask_once(self, what: str, call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        try:
            # Only this form of the generated functions tells what kind of answer it was.
            with_headers = getattr(call.__self__, f"{call.__name__}_with_http_info")  # type: ignore[attr-defined]
            answer, _, headers = with_headers(*arguments, **options, _request_timeout=self._timeout)
        except ApiException as error:
            raise self._refused(what, error) from error
        except urllib3.exceptions.HTTPError as error:
            raise TemporaryFailure(
                f"Kubeflow Pipelines at {self.address.endpoint} cannot be reached to {what}: {_reason(error)}",
                hint="check the address and the port-forward; doing it again is harmless",
            ) from error
        except (ValueError, TypeError, AttributeError) as error:
            raise self._not_kfp() from error
        if "json" not in headers.get("Content-Type", ""):
            raise self._not_kfp()
        return answer

    def _refused(self, what: str, error: ApiException) -> CelebditError:
        said = _server_message(error)
        where = f"Kubeflow Pipelines at {self.address.endpoint}"
        status = int(error.status or 0)
        if status in _TEMPORARY:
            return TemporaryFailure(
                f"{where} could not {what} (HTTP {status}): {said}", hint="its own log says why; doing it again is harmless"
            )
        if status == 409:
            return _Exists(f"{where} already has it: {said}", hint="submit with --again for another run")
        hints = {
            401: f"it does not know who you are: set {TOKEN} or {COOKIES} (docs/kubernetes.md, Access)",
            403: f"you are known but not allowed to: ask for access to namespace {self.address.namespace or 'kubeflow'}, or name another",
            404: "check --endpoint, and the id if you gave one",
        }
        if 300 <= status < 400:
            return self._not_kfp()
        return BadInput(f"{where} refused to {what} (HTTP {status}): {said}", hint=hints.get(status))

    def _not_kfp(self) -> BadInput:
        return BadInput(
            f"what answers at {self.address.endpoint} is not Kubeflow Pipelines, perhaps a login page",
            hint=f"set {TOKEN} or {COOKIES}, or port-forward svc/ml-pipeline-ui (docs/kubernetes.md, Access)",
        )


class _Exists(BadInput):
    """The server has something of that name already."""


class _GaveUp(TemporaryFailure):
    """A temporary failure that outlasted the deadline."""


def _named(name: str) -> str:
    return json.dumps({"predicates": [{"operation": "EQUALS", "key": "display_name", "stringValue": name}]})


def _reference(version: Version) -> Any:
    return kfp_server_api.V2beta1PipelineVersionReference(pipeline_id=version.pipeline_id, pipeline_version_id=version.version_id)


def _server_message(error: ApiException) -> str:
    """Return the first line of what the server said, without the page around it."""
    body = error.body.decode(errors="replace") if isinstance(error.body, bytes) else str(error.body or "")
    try:
        raw = json.loads(body)
        text = str(raw.get("message") or raw.get("error_message") or raw.get("error") or "")
    except (ValueError, AttributeError):
        text = "" if body.lstrip().startswith("<") else body
    return " ".join((text or str(error.reason or "no reason given")).split())[:300]


def _reason(error: Exception) -> str:
    cause = getattr(error, "reason", None) or error
    return " ".join(str(cause).split(":")[-1].split())[:200] or type(error).__name__
