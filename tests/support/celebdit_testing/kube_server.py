"""A Kubernetes API server for tests, on 127.0.0.1: the paths that we use, with the rights of our own manifests enforced.

A caller is the service account that its token names; what it may do is read from the Role, ClusterRole and binding objects that the test
loads, usually those of docker/kubernetes. TrainJobs are parsed by Kubeflow's own models, strictly. With `run_nodes`, a TrainJob's nodes are
really run, as processes of this machine with the environment that Kubeflow Trainer gives them.
"""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml
from celebdit_testing.http_server import Handler, Refused, serving
from celebdit_testing.kube_logs import PodLogs
from celebdit_testing.pods import Network
from kubeflow_trainer_api import models as trainer

from components.system.ports import free_port
from components.system.process import spawn, stop

TOKENS = {"token-of-pipeline-runner": "pipeline-runner", "token-of-nobody": "nobody", "token-of-admin": "admin"}
JOBSET_LABEL = "jobset.sigs.k8s.io/jobset-name"
PATHS = (
    re.compile(r"/api/v1/namespaces/(?P<namespace>[^/]+)/(?P<resource>[a-z]+)(/(?P<name>[^/]+)(/(?P<subresource>[a-z]+))?)?"),
    re.compile(r"/apis/(?P<group>[^/]+)/(?P<version>[^/]+)/namespaces/(?P<namespace>[^/]+)/(?P<resource>[a-z]+)(/(?P<name>[^/]+))?"),
    re.compile(r"/apis/(?P<group>[^/]+)/(?P<version>[^/]+)/(?P<resource>[a-z]+)(/(?P<name>[^/]+))?"),
    re.compile(r"/api/v1/(?P<resource>namespaces|nodes)(/(?P<name>[^/]+))?"),
)


@dataclass
class FakeKube:
    namespace: str = "kubeflow"
    objects: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    """(resource, name) -> object, in the one namespace or the cluster."""
    other_namespaces: frozenset[str] = frozenset()
    """Further namespaces, with the same objects."""
    rules: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    logs: PodLogs = field(default_factory=PodLogs)
    faults: list[tuple[str, str, int | str]] = field(default_factory=list)
    """(verb, resource, status or "lost"), each used once."""
    requests: list[str] = field(default_factory=list)
    bodies: list[str] = field(default_factory=list)
    run_nodes: Path | None = None
    pods: Network | None = None
    """Where nodes run: in pods of this network, or as processes of this machine."""
    absent_nodes: frozenset[int] = frozenset()
    """Nodes for which the cluster has no room: their pods stay pending."""
    url: str = ""
    closed: bool = False
    lock: threading.RLock = field(default_factory=threading.RLock)
    children: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def load_rights(self, manifest: Path) -> None:
        """Grant what the roles of a manifest grant, to the accounts that its bindings name."""
        documents = [document for document in yaml.safe_load_all(manifest.read_text()) if document]
        roles = {document["metadata"]["name"]: document["rules"] for document in documents if document["kind"].endswith("Role")}
        for document in documents:
            if document["kind"].endswith("Binding"):
                for subject in document["subjects"]:
                    self.rules.setdefault(subject["name"], []).extend(roles[document["roleRef"]["name"]])

    def put(self, resource: str, name: str, **content: Any) -> dict[str, Any]:
        body = {**content, "metadata": {"name": name, "uid": uuid.uuid4().hex, **content.get("metadata", {})}}
        self.objects[resource, name] = body
        return body

    def allowed(self, account: str, verb: str, group: str, resource: str) -> bool:
        if account == "admin":
            return True
        return any(
            group in rule["apiGroups"] and resource in rule["resources"] and verb in rule["verbs"] for rule in self.rules.get(account, [])
        )

    def count(self, request: str) -> int:
        return self.requests.count(request)

    def node_pod(self, job: str, index: int, *, phase: str = "Running", **status: Any) -> dict[str, Any]:
        labels = {JOBSET_LABEL: job, "batch.kubernetes.io/job-completion-index": str(index)}
        return self.put("pods", f"{job}-node-0-{index}", metadata={"labels": labels}, status={"phase": phase, **status})

    def condition(self, job: str, kind: str, message: str = "") -> None:
        """Let a job end, and with it the pods that still run."""
        for (resource, _), pod in self.objects.items():
            if resource == "pods" and pod["metadata"].get("labels", {}).get(JOBSET_LABEL) == job and pod["status"]["phase"] == "Running":
                pod["status"]["phase"] = "Succeeded" if kind == "Complete" else "Failed"
        self.objects["trainjobs", job]["status"] = {"conditions": [{"type": kind, "status": "True", "message": message}]}

    def pod_ended(self, name: str) -> bool:
        pod = self.objects.get(("pods", name))
        return self.closed or pod is None or pod["status"]["phase"] in ("Succeeded", "Failed")

    # --- what the Trainer's controllers and kubelets do

    def start(self, job: dict[str, Any]) -> None:
        if self.run_nodes is not None:
            threading.Thread(target=self._run, args=(job, self.run_nodes), daemon=True).start()

    def _run(self, job: dict[str, Any], folder: Path) -> None:
        name, trainer_spec = job["metadata"]["name"], job["spec"]["trainer"]
        port, attempt = free_port(), job["metadata"]["uid"][:6]
        processes = []
        for index in range(trainer_spec["numNodes"]):
            if index in self.absent_nodes:
                reason = {"type": "PodScheduled", "status": "False", "message": "0/5 nodes are available"}
                self.node_pod(name, index, phase="Pending", conditions=[reason])
                continue
            words, log = folder / f"last-words-{index}-{attempt}", folder / f"node-{index}.log"
            environment = {
                **self._environment_of(trainer_spec["env"]),
                "PET_NNODES": str(trainer_spec["numNodes"]),
                "PET_NPROC_PER_NODE": str(trainer_spec["numProcPerNode"]),
                "PET_NODE_RANK": str(index),
                "PET_MASTER_ADDR": "127.0.0.1",
                "PET_MASTER_PORT": str(port),
                "CELEBDIT_WORK_DIR": str(folder / f"node-{index}-{attempt}"),  # an empty disk
                "CELEBDIT_LAST_WORDS": str(words),
                "OMP_NUM_THREADS": "1",
            }
            if self.pods is None:
                others = {key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "MLFLOW_", "CELEBDIT_"))}
                prefix, environment = [], {**others, **environment}
            else:
                prefix, place = self.pods.pod(index), {"PET_MASTER_ADDR": "node-0", "PET_MASTER_PORT": "29500"}
                environment = {"PATH": os.environ["PATH"], "HOME": str(folder), **environment, **place}
            command = [sys.executable if part == "python" else part for part in [*trainer_spec["command"], *trainer_spec["args"]]]
            with log.open("wb") as file:
                process = spawn([*prefix, *command], environment=environment, stdout=file, new_group=True)
            self.children.append(process)
            processes.append((index, process, words, log))
            self.node_pod(name, index)
        self._await_nodes(name, processes)

    def _environment_of(self, entries: list[dict[str, Any]]) -> dict[str, str]:
        environment = {}
        for entry in entries:
            if "value" in entry:
                environment[entry["name"]] = entry["value"]
                continue
            (kind, reference) = next(iter(entry["valueFrom"].items()))
            source = self.objects.get(({"secretKeyRef": "secrets", "configMapKeyRef": "configmaps"}[kind], reference["name"]))
            if source is None or reference["key"] not in source["data"]:
                assert reference["optional"]
                continue
            environment[entry["name"]] = source["data"][reference["key"]]
        return environment

    def _await_nodes(self, name: str, processes: list[tuple[int, subprocess.Popen[bytes], Path, Path]]) -> None:
        failed = False
        while any(process.poll() is None for _, process, _, _ in processes) and not failed:
            time.sleep(0.1)
            for index, _, _, log in processes:
                self.logs.take_in(f"{name}-node-0-{index}", log)
            failed = any(process.poll() not in (None, 0) for _, process, _, _ in processes) or ("trainjobs", name) not in self.objects
        running = {index for index, process, _, _ in processes if process.poll() is None}
        for index, process, words, log in sorted(processes, key=lambda entry: entry[0] in running):
            status = stop(process, grace_s=20.0) if process.poll() is None else process.returncode
            message = words.read_text() if words.exists() else log.read_text(errors="replace")[-2000:]
            if self.pods is not None and self.pods.was_killed(message):
                status = -signal.SIGKILL
            ended = {"exitCode": status if status >= 0 else 128 - status, "message": message, "finishedAt": datetime.now(UTC).isoformat()}
            phase = "Succeeded" if status == 0 else "Failed"
            with self.lock:
                self.logs.take_in(f"{name}-node-0-{index}", log, to_the_end=True)
                pod = self.objects["pods", f"{name}-node-0-{index}"]
                pod["status"] = {"phase": phase, "containerStatuses": [{"name": "node", "state": {"terminated": ended}}]}
        with self.lock:
            if ("trainjobs", name) in self.objects:
                done = all(process.returncode == 0 for _, process, _, _ in processes)
                self.condition(name, "Complete" if done else "Failed", "" if done else "jobset failed due to one or more job failures")

    # --- requests

    def delete(self, resource: str, name: str) -> dict[str, Any]:
        """Delete an object and what it owns, as the garbage collector does."""
        gone = self.objects.pop((resource, name))
        uid = gone["metadata"]["uid"]
        for key, entry in list(self.objects.items()):
            if any(owner["uid"] == uid for owner in entry["metadata"].get("ownerReferences", [])):
                self.delete(*key)
        return gone

    def answer(self, verb: str, where: dict[str, str], query: dict[str, str], body: Any) -> Any:
        resource, name = where["resource"], where.get("name")
        if verb == "list":
            labels = dict(part.split("=") for part in query.get("labelSelector", "").split(",") if part)
            candidates = [entry for (kind, _), entry in sorted(self.objects.items()) if kind == resource]
            matching = [entry for entry in candidates if labels.items() <= entry["metadata"].get("labels", {}).items()]
            return {"apiVersion": "v1", "kind": "List", "metadata": {}, "items": matching}
        if verb == "create":
            name = body["metadata"]["name"]
            check_trainjob(body) if resource == "trainjobs" else check_object(body)
            if (resource, name) in self.objects:
                raise Refused(409, f'{resource} "{name}" already exists')
            body["metadata"]["uid"] = uuid.uuid4().hex
            self.objects[resource, name] = body
            if resource == "trainjobs":
                self.start(body)
            return body
        if (resource, name) not in self.objects:
            raise Refused(404, f'{resource} "{name}" not found')
        if verb == "delete":
            return self.delete(resource, str(name))
        return self.objects[resource, str(name)]


def check_object(body: dict[str, Any]) -> None:
    """Validate against the API of Kubernetes and find nothing that it does not know."""
    try:
        kubernetes_validate.validate(body, ".".join(kubernetes_validate.latest_version().split(".")[:2]), strict=True)
    except kubernetes_validate.ValidationError as error:
        raise Refused(422, f"{body['kind']} is invalid: {error}") from error


def check_trainjob(body: dict[str, Any]) -> None:
    """Parse with Kubeflow's models and find nothing that they do not know."""
    try:
        parsed = trainer.TrainerV1alpha1TrainJob.from_dict(body)
    except ValueError as error:
        raise Refused(422, f"TrainJob is invalid: {error}") from error
    if lost := difference(body, json.loads(json.dumps(parsed.to_dict(), default=str)), ""):
        raise Refused(422, f"TrainJob is invalid: unknown or changed {lost}")
    if not re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", body["metadata"]["name"]):
        raise Refused(422, "metadata.name must be a RFC 1035 label")
    if any(entry["name"].startswith("PET_") for entry in body["spec"]["trainer"]["env"]):
        raise Refused(422, "PET_ variables are the Trainer's own")


def difference(submitted: Any, parsed: Any, where: str) -> str:
    """Return the first place where a submitted value did not survive parsing."""
    if isinstance(submitted, dict):
        if not isinstance(parsed, dict):
            return where
        return next((place for key in submitted if (place := difference(submitted[key], parsed.get(key), f"{where}.{key}"))), "")
    if isinstance(submitted, list):
        if not isinstance(parsed, list) or len(submitted) != len(parsed):
            return where
        return next((place for index, item in enumerate(submitted) if (place := difference(item, parsed[index], f"{where}[{index}]"))), "")
    return "" if submitted == parsed else where


def handler_of(kube: FakeKube) -> type[Handler]:
    class KubeHandler(Handler):
        def handle_any(self) -> None:
            raw = self.content()
            try:
                account = TOKENS.get(self.headers.get("Authorization", "").removeprefix("Bearer "))
                if account is None:
                    raise Refused(401, "Unauthorized")
                if self.target.rstrip("/") == "/version":
                    return self.answer(200, {"gitVersion": "v1.36.0"})
                body = json.loads(raw) if raw.startswith(b"{") else None
                if "accessreviews" in self.target:
                    return self.answer(201, self.review(account, body))
                return self.carry_out(account, body)
            except Refused as refused:
                status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": str(refused), "code": refused.status}
                return self.answer(refused.status, status)

        do_GET = do_POST = do_DELETE = handle_any  # noqa: N815

        def review(self, account: str, body: Any) -> Any:
            attributes = body["spec"]["resourceAttributes"]
            who = body["spec"].get("user", account).rpartition(":")[2]
            resource = attributes["resource"] + (f"/{attributes['subresource']}" if attributes.get("subresource") else "")
            return {**body, "status": {"allowed": kube.allowed(who, attributes["verb"], attributes.get("group", ""), resource)}}

        def carry_out(self, account: str, body: Any) -> None:
            route = next((match for pattern in PATHS if (match := pattern.fullmatch(self.target))), None)
            if route is None:
                raise Refused(404, f"the test server knows no {self.target}")
            where = {key: value for key, value in route.groupdict().items() if value is not None}
            verb = {"GET": "get" if "name" in where else "list", "POST": "create", "DELETE": "delete"}[self.command]
            resource = where["resource"] + (f"/{where['subresource']}" if "subresource" in where else "")
            kube.requests.append(f"{verb} {resource}")
            kube.bodies.append(json.dumps(body))
            here = where.get("namespace", kube.namespace) in {kube.namespace, *kube.other_namespaces}
            if not here or not kube.allowed(account, verb, where.get("group", ""), resource):
                raise Refused(403, f'{resource} is forbidden: User "{account}" cannot {verb} resource "{resource}"')
            fault = next((fault for fault in kube.faults if fault[:2] == (verb, resource)), None)
            if fault is not None:
                kube.faults.remove(fault)
                if isinstance(fault[2], int):
                    raise Refused(fault[2], "by order of the test")
            if "subresource" in where:
                if ("pods", where["name"]) not in kube.objects:
                    raise Refused(404, f'pods "{where["name"]}" not found')
                return kube.logs.send(self, where["name"], self.query, lambda: kube.pod_ended(where["name"]))
            with kube.lock:
                answer = kube.answer(verb, where, self.query, body)
            if fault is not None:
                return self.hang_up()
            return self.answer(201 if verb == "create" else 200, answer)

    return KubeHandler


@contextmanager
def kube_server(folder: Path, **options: Any) -> Iterator[FakeKube]:
    """Serve the API until the block ends; `folder` gets a kubeconfig per account, named after it."""
    kube = FakeKube(**options)
    with serving(handler_of(kube)) as kube.url:
        for token, account in TOKENS.items():
            context = {"cluster": "test", "user": account, "namespace": kube.namespace}
            kubeconfig = {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "test",
                "clusters": [{"name": "test", "cluster": {"server": kube.url}}],
                "users": [{"name": account, "user": {"token": token}}],
                "contexts": [{"name": "test", "context": context}],
            }
            (folder / f"{account}.kubeconfig").write_text(yaml.safe_dump(kubeconfig))
        try:
            yield kube
        finally:
            kube.closed = True
    for process in kube.children:
        if process.poll() is None:
            stop(process, grace_s=5.0)
