"""A Kubeflow Pipelines server for tests, on 127.0.0.1: it speaks the real REST API (`kfp_api`) and keeps its objects in memory.

Faults are put in by rule: a status, a slow answer, or an answer that gets lost after the request was carried out.
"""

import json
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import kfp_server_api as api
from celebdit_testing.http_server import Handler, Refused, serving
from celebdit_testing.kfp_api import Route, check_package, route_of, uploaded_file, validated

CLIENT = api.ApiClient()


@dataclass
class Fault:
    """What goes wrong with the next `times` requests of operation `name`: a status, "lost" (done, not answered), "drop" or "slow"."""

    name: str
    kind: int | str
    times: int = 1
    text: str = "by order of the test"


@dataclass
class FakeKfp:
    multi_user: bool = False
    version: str = "2.17.0"
    token: str | None = None
    pipelines: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, Any] = field(default_factory=dict)
    packages: dict[str, str] = field(default_factory=dict)
    experiments: dict[str, Any] = field(default_factory=dict)
    runs: dict[str, Any] = field(default_factory=dict)
    recurring: dict[str, Any] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    raw: list[bytes] = field(default_factory=list)
    """Request lines and bodies."""
    headers: list[str] = field(default_factory=list)
    on_get_run: Callable[[Any], None] = lambda run: None
    before: Callable[[str], None] = lambda name: None
    url: str = ""
    _ticks: int = 0
    lock: threading.RLock = field(default_factory=threading.RLock)

    def now(self) -> datetime:
        self._ticks += 1
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self._ticks)

    def fault(self, name: str) -> Fault | None:
        for fault in self.faults:
            if fault.times and re.fullmatch(fault.name, name):
                fault.times -= 1
                return fault
        return None

    def count(self, name: str) -> int:
        return self.requests.count(name)

    def step(self, run: Any, name: str, state: str, message: str | None = None) -> None:
        """Put a step's task into a run, as the server lists them."""
        task = api.V2beta1PipelineTaskDetail(
            run_id=run.run_id,
            task_id=uuid.uuid4().hex,
            display_name=name,
            state=state,
            create_time=self.now(),
            start_time=self.now(),
            end_time=self.now() if state in ("SUCCEEDED", "FAILED", "SKIPPED", "CANCELED") else None,
            error=api.GoogleRpcStatus(code=2, message=message) if message else None,
        )
        details = run.run_details or api.V2beta1RunDetails(task_details=[])
        details.task_details = [old for old in details.task_details if old.display_name != name] + [task]
        run.run_details = details

    def end(self, run: Any, state: str = "SUCCEEDED") -> None:
        run.state, run.finished_at = state, self.now()

    # --- operations, by the names of the API's client

    def healthz_service_get_healthz(self, **_: Any) -> Any:
        return api.V2beta1GetHealthzResponse(multi_user=self.multi_user)

    def pipeline_service_list_pipelines(self, **query: Any) -> Any:
        self.scoped(query)
        entries, token = self.page(self.pipelines, query)
        return api.V2beta1ListPipelinesResponse(pipelines=entries, next_page_token=token)

    def pipeline_service_create_pipeline(self, body: Any, **_: Any) -> Any:
        self.scoped({"namespace": body.namespace})
        self.unique(self.pipelines, body.display_name)
        body.pipeline_id, body.created_at = uuid.uuid4().hex, self.now()
        self.pipelines[body.pipeline_id] = body
        return body

    def pipeline_service_list_pipeline_versions(self, pipeline_id: str, **query: Any) -> Any:
        mine = {key: version for key, version in self.versions.items() if version.pipeline_id == pipeline_id}
        entries, token = self.page(mine, query)
        return api.V2beta1ListPipelineVersionsResponse(pipeline_versions=entries, next_page_token=token)

    def upload_pipeline_version(
        self, package: bytes, *, pipelineid: str, name: str, description: str = "", tags: str | None = None, **_: Any
    ) -> Any:
        self.since_2_17("tags", tags)
        self.require(self.pipelines, pipelineid, "pipeline")
        mine = {key: version for key, version in self.versions.items() if version.pipeline_id == pipelineid}
        self.unique(mine, name)
        check_package(package.decode())
        version = api.V2beta1PipelineVersion(
            pipeline_id=pipelineid,
            pipeline_version_id=uuid.uuid4().hex,
            display_name=name,
            name=name,
            description=description,
            created_at=self.now(),
            tags=json.loads(tags) if tags else None,
        )
        self.versions[version.pipeline_version_id] = version
        self.packages[version.pipeline_version_id] = package.decode()
        return version

    def experiment_service_list_experiments(self, **query: Any) -> Any:
        self.scoped(query)
        entries, token = self.page(self.experiments, query)
        return api.V2beta1ListExperimentsResponse(experiments=entries, next_page_token=token)

    def experiment_service_create_experiment(self, body: Any, **_: Any) -> Any:
        self.scoped({"namespace": body.namespace})
        self.unique(self.experiments, body.display_name)
        body.experiment_id, body.created_at = uuid.uuid4().hex, self.now()
        self.experiments[body.experiment_id] = body
        return body

    def run_service_list_runs(self, **query: Any) -> Any:
        if "experiment_id" not in query:
            self.scoped(query)
        mine = {key: run for key, run in self.runs.items() if query.get("experiment_id", run.experiment_id) == run.experiment_id}
        entries, token = self.page(mine, query)
        return api.V2beta1ListRunsResponse(runs=entries, next_page_token=token)

    def run_service_create_run(self, body: Any, **_: Any) -> Any:
        if not body.display_name or body.run_id or body.state:
            raise Refused(400, "a run needs a name, and its id and state are the server's")
        self.require(self.experiments, body.experiment_id, "experiment")
        self.require(self.versions, body.pipeline_version_reference.pipeline_version_id, "pipeline version")
        self.since_2_17("pluginsInput", body.plugins_input)
        body.run_id, body.created_at, body.state = str(uuid.uuid4()), self.now(), "PENDING"
        body.storage_state = "AVAILABLE"
        self.runs[body.run_id] = body
        return body

    def run_service_get_run(self, run_id: str, **_: Any) -> Any:
        run = self.require(self.runs, run_id, "run")
        self.on_get_run(run)
        return run

    def run_service_retry_run(self, run_id: str, **_: Any) -> Any:
        run = self.require(self.runs, run_id, "run")
        if run.state not in ("FAILED", "CANCELED"):
            raise Refused(400, f"Workflow cannot be retried. Workflow must be Failed/Error to retry, not {run.state}")
        run.state, run.finished_at = "RUNNING", None
        return {}

    def run_service_terminate_run(self, run_id: str, **_: Any) -> Any:
        self.end(self.require(self.runs, run_id, "run"), "CANCELED")
        return {}

    def run_service_archive_run(self, run_id: str, **_: Any) -> Any:
        self.require(self.runs, run_id, "run").storage_state = "ARCHIVED"
        return {}

    def recurring_run_service_create_recurring_run(self, body: Any, **_: Any) -> Any:
        self.require(self.experiments, body.experiment_id, "experiment")
        self.require(self.versions, body.pipeline_version_reference.pipeline_version_id, "pipeline version")
        cron = body.trigger.cron_schedule
        if (cron is None) == (body.trigger.periodic_schedule is None):
            raise Refused(400, "a trigger is either a cron schedule or a periodic one")
        if cron is not None and (len(cron.cron.split()) != 6 or not re.fullmatch(r"[0-9*/,?A-Za-z -]+", cron.cron)):
            raise Refused(400, f"Invalid cron {cron.cron!r}")
        self.since_2_17("pluginsInput", body.plugins_input)
        body.recurring_run_id, body.created_at = uuid.uuid4().hex, self.now()
        self.recurring[body.recurring_run_id] = body
        return body

    def recurring_run_service_list_recurring_runs(self, **query: Any) -> Any:
        mine = {key: entry for key, entry in self.recurring.items() if entry.experiment_id == query["experiment_id"]}
        entries, token = self.page(mine, query)
        return api.V2beta1ListRecurringRunsResponse(recurring_runs=entries, next_page_token=token)

    def recurring_run_service_delete_recurring_run(self, recurring_run_id: str, **_: Any) -> Any:
        self.require(self.recurring, recurring_run_id, "recurring run")
        del self.recurring[recurring_run_id]
        return {}

    # --- rules that operations share

    def scoped(self, query: dict[str, Any]) -> None:
        if self.multi_user and not query.get("namespace"):
            raise Refused(400, "Invalid input error: a namespace is required in multi-user mode")
        if not self.multi_user and query.get("namespace"):
            raise Refused(400, "Invalid input error: in single-user mode, a namespace cannot be given")

    def since_2_17(self, field_name: str, value: Any) -> None:
        if value is not None and tuple(map(int, self.version.split(".")[:2])) < (2, 17):
            raise Refused(400, f"unknown field {field_name}")

    def unique(self, entries: dict[str, Any], name: str) -> None:
        if any(entry.display_name == name for entry in entries.values()):
            raise Refused(409, f"Already exist error: the name {name} already exists")

    def require(self, entries: dict[str, Any], key: str, what: str) -> Any:
        if key not in entries:
            raise Refused(404, f"ResourceNotFoundError: {what} {key} not found.")
        return entries[key]

    def page(self, entries: dict[str, Any], query: dict[str, Any]) -> tuple[list[Any], str | None]:
        """Return what a listing shows of `entries`, and the token of its next page."""
        selected = list(entries.values())
        for predicate in json.loads(query.get("filter") or "{}").get("predicates", []):
            if predicate.keys() != {"operation", "key", "stringValue"} or (predicate["operation"], predicate["key"]) != (
                "EQUALS",
                "display_name",
            ):
                raise Refused(400, f"the test server knows no filter {predicate}")
            selected = [entry for entry in selected if entry.display_name == predicate["stringValue"]]
        key, _, order = query.get("sort_by", "created_at asc").partition(" ")
        if key != "created_at" or order not in ("asc", "desc", ""):
            raise Refused(400, f"cannot sort by {key!r} {order!r}")
        selected.sort(key=lambda entry: entry.created_at, reverse=order == "desc")
        start, size = int(query.get("page_token") or 0), int(query.get("page_size", 10))
        return selected[start : start + size], str(start + size) if start + size < len(selected) else None


def handler_of(server: FakeKfp) -> type[Handler]:
    class KfpHandler(Handler):
        def handle_any(self) -> None:
            raw = self.content()
            server.raw.append(self.requestline.encode() + b"\n" + raw)
            server.headers.append("\n".join(f"{name.lower()}: {value}" for name, value in self.headers.items()))
            if self.target == "/apis/v1beta1/healthz":  # the older check, which is not in the models, and alone tells the version
                return self.answer(200, {"tag_name": server.version, "multi_user": server.multi_user})
            try:
                self.tell(*route_of(self.command, self.target), raw)
            except Refused as refused:
                self.answer(refused.status, {"code": 2, "message": str(refused), "details": []})
            return None

        do_GET = do_POST = do_DELETE = handle_any  # noqa: N815

        def tell(self, route: Route, path: dict[str, str], raw: bytes) -> None:
            server.before(route.name)
            fault = server.fault(route.name)
            kind = fault.kind if fault is not None else None
            with server.lock:
                server.requests.append(route.name)
                if kind == "drop":
                    return self.hang_up()
                if fault is not None and isinstance(kind, int):
                    raise Refused(kind, fault.text)
                if server.token and self.headers.get("authorization") != f"Bearer {server.token}":
                    raise Refused(401, "Unauthenticated")
                answer = self.carried_out(route, path, raw)
            if kind == "lost":
                return self.hang_up()
            if fault is not None and kind == "slow":
                time.sleep(float(fault.text))
            if kind == "html":
                return self.answer(200, b"<!doctype html><title>Sign in</title>", "text/html")
            return self.answer(200, CLIENT.sanitize_for_serialization(answer))

        def carried_out(self, route: Route, path: dict[str, str], raw: bytes) -> Any:
            query = self.query
            if unknown := set(query) - route.parameters:
                raise Refused(400, f"unknown parameter {sorted(unknown)}")
            operation = getattr(server, route.name, None)
            if operation is None:
                raise Refused(501, f"the test server does not do {route.name}")
            if "upload" in route.name:
                return operation(uploaded_file(self.headers["Content-Type"], raw), **query)
            if route.body is not None:
                return operation(validated(json.loads(raw or b"null"), route.body, "body"), **path, **query)
            return operation(**path, **query)

    return KfpHandler


@contextmanager
def kfp_server(**options: Any) -> Iterator[FakeKfp]:
    """Serve the API until the block ends."""
    fake = FakeKfp(**options)
    with serving(handler_of(fake)) as fake.url:
        yield fake
